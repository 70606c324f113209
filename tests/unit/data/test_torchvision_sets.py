"""Data sets of torchvision, read by torchvision's classes or by two stand-ins for them.

The real classes read small files in the layout that they expect.
"""

import hashlib
import json
import struct
import urllib.error
import urllib.request

import numpy as np
import pytest
import torchvision
from PIL import Image
from scipy.io import savemat

from ssdistill.data.decode import BadImage
from ssdistill.data.sources.torchvision_sets import Cifar10, Cifar100, Stl10
from ssdistill.data.store import open_store
from ssdistill.errors import UserError
from ssdistill.settings.registry import SOURCES

SIZES = {
    "fashion_mnist": (6, 4),
    "svhn": (6, 4),
    "flowers102": (4, 3),
    "pets": (4, 3),
    "dtd": (4, 2),
    "food101": (4, 2),
}
"""Train and test images of each fake."""
FILES = {"flowers102", "pets", "dtd", "food101"}


def write_image(path, level, size=(12, 9)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (level, level, level)).save(path)


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def idx(path, array):
    """The format of MNIST's files: magic number, sizes, bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def fashion_mnist(root, patch):
    for part, count in (("train", 6), ("t10k", 4)):
        raw = root / "FashionMNIST" / "raw"
        images = np.arange(count)[:, None, None] * np.ones((28, 28)) + 10
        idx(raw / f"{part}-images-idx3-ubyte", images)
        idx(raw / f"{part}-labels-idx1-ubyte", np.arange(count) % 2)


def svhn(root, patch):
    root.mkdir(exist_ok=True)
    known = {}
    for part, count in (("train", 6), ("test", 4)):
        images = np.arange(count) * np.ones((32, 32, 3, 1)) + 10
        path = root / f"{part}_32x32.mat"
        # The file's label of a zero is 10.
        labels = np.where(np.arange(count) % 2, 1, 10)[:, None]
        savemat(path, {"X": images.astype(np.uint8), "y": labels})
        known[part] = ["http://nowhere", path.name, md5(path)]
    patch.setattr(torchvision.datasets.SVHN, "split_list", known)


def flowers102(root, patch):
    folder = root / "flowers-102"
    for i in range(1, 8):
        write_image(folder / "jpg" / f"image_{i:05d}.jpg", 10 * i)
    savemat(folder / "imagelabels.mat", {"labels": np.array([1, 2, 1, 2, 1, 2, 1])})
    savemat(folder / "setid.mat", {"trnid": [7, 2], "valid": [4, 1], "tstid": [3, 5, 6]})
    names = {"image": "102flowers.tgz", "label": "imagelabels.mat", "setid": "setid.mat"}
    known = {key: (name, md5(folder / name) if key != "image" else "0")
             for key, name in names.items()}  # fmt: skip
    patch.setattr(torchvision.datasets.Flowers102, "_file_dict", known)


def pets(root, patch):
    folder = root / "oxford-iiit-pet"
    for part, count in (("trainval", 4), ("test", 3)):
        lines = []
        for i in range(count):
            breed = ("great_pyrenees", "Bombay")[i % 2]
            write_image(folder / "images" / f"{breed}_{part}{i}.jpg", 10 * i + 10)
            lines.append(f"{breed}_{part}{i} {i % 2 + 1} 1 1\n")
        (folder / "annotations").mkdir(exist_ok=True)
        (folder / "annotations" / f"{part}.txt").write_text("".join(lines))


def dtd(root, patch):
    folder = root / "dtd" / "dtd"
    (folder / "labels").mkdir(parents=True)
    for part in ("train", "val", "test"):
        names = [f"{name}/{name}_{part}.jpg" for name in ("banded", "woven")]
        for i, name in enumerate(names):
            write_image(folder / "images" / name, 10 * i + 10)
        (folder / "labels" / f"{part}1.txt").write_text("\n".join(names) + "\n")
        (folder / "labels" / f"{part}2.txt").write_text("banded/gone.jpg\n")


def food101(root, patch):
    folder = root / "food-101"
    for part, numbers in (("train", (1, 2)), ("test", (3,))):
        listed = {name: [f"{name}/{i}" for i in numbers] for name in ("waffles", "apple_pie")}
        for k, names in enumerate(listed.values()):
            for name in names:
                write_image(folder / "images" / f"{name}.jpg", 20 - 10 * k)
        (folder / "meta").mkdir(exist_ok=True)
        (folder / "meta" / f"{part}.json").write_text(json.dumps(listed))


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise urllib.error.URLError("no network\nat all")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


@pytest.fixture
def fake(tmp_path, monkeypatch, no_network):
    """``fake(kind)``: the source over files that were just written."""

    def make(kind):
        globals()[kind](tmp_path / "root", monkeypatch)
        return SOURCES.build(SOURCES.schema(kind)(root=str(tmp_path / "root")))

    return make


@pytest.mark.parametrize("kind", SIZES)
def test_splits_labels_and_pictures_are_torchvisions(fake, kind):
    source = fake(kind)
    train, test = source.split("train"), source.split("test")
    assert (len(train), len(test)) == SIZES[kind]
    assert source.has_labels
    for split in (train, test):
        labels = split.labels()
        assert labels.dtype == np.int64 and set(labels.tolist()) == {0, 1}
        assert len(labels) == len(split)
        assert len({split.name(i) for i in range(len(split))}) == len(split)
        image = split.image(0)
        assert (image.dtype, image.shape[2]) == (np.uint8, 3)
        assert (split.array() is None) == (kind in FILES)
    assert train.identity() != test.identity()
    assert train.identity() == source.split("train").identity()


@pytest.mark.parametrize("kind", SIZES)
def test_a_store_is_made_of_them_and_found_again_without_the_files(fake, kind, tmp_path):
    source = fake(kind)
    store = open_store(source, "train", 8, tmp_path / "stores")
    assert store.images.shape == (SIZES[kind][0], 8, 8, 3)
    assert len(store.labels) == len(store) and not store.bad
    elsewhere = tmp_path / "moved"
    (tmp_path / "root").rename(elsewhere)
    again = open_store(source, "train", 8, tmp_path / "stores")
    assert again.fingerprint == store.fingerprint


@pytest.mark.parametrize("kind", SIZES)
def test_a_failed_download_names_kind_and_root(no_network, tmp_path, kind):
    source = SOURCES.build(SOURCES.schema(kind)(root=str(tmp_path / "none")))
    with pytest.raises(UserError, match=rf"data.kind={kind}: not found in root '.*none'") as caught:
        len(source.split("test"))
    assert "\n" not in str(caught.value)


def test_each_label_belongs_to_its_picture(fake):
    for kind in FILES - {"flowers102"}:
        source = fake(kind)
        for split in map(source.split, ("train", "test")):
            for i, label in enumerate(split.labels()):
                level = split.image(i).mean()
                expected = level / 10 - 1 if kind != "pets" else (level / 10 - 1) % 2
                assert label == round(expected), (kind, i)


def test_gray_becomes_three_channels_and_columns_last(fake):
    gray = fake("fashion_mnist").split("train").array()
    assert gray.shape == (6, 28, 28, 3) and gray[3, 0, 0].tolist() == [13, 13, 13]
    digits = fake("svhn").split("test")
    assert digits.array().shape == (4, 32, 32, 3) and digits.image(2)[5, 5].tolist() == [12] * 3
    assert digits.labels().tolist() == [0, 1, 0, 1]


def test_flowers_train_on_train_and_val(fake):
    train = fake("flowers102").split("train")
    assert [train.name(i) for i in range(4)] == [f"jpg/image_{i:05d}.jpg" for i in (7, 2, 4, 1)]
    assert train.labels().tolist() == [0, 1, 1, 0]
    names = train.class_names
    assert names is None or len(set(names)) == 102


def test_textures_are_the_first_split_with_val_in_train(fake):
    train = fake("dtd").split("train")
    parts = [train.name(i).split("_")[-1] for i in range(4)]
    assert parts == ["train.jpg", "train.jpg", "val.jpg", "val.jpg"]
    assert train.class_names == ("banded", "woven")


def test_parts_with_other_classes_are_refused(fake, tmp_path):
    source = fake("dtd")
    labels = tmp_path / "root" / "dtd" / "dtd" / "labels" / "val1.txt"
    labels.write_text("banded/banded_val.jpg\nknitted/x.jpg\n")
    with pytest.raises(
        UserError, match=r"data.kind=dtd: the parts train, val .* different classes"
    ):
        len(source.split("train"))


def test_files_are_read_when_they_are_asked_for(fake, tmp_path):
    split = fake("food101").split("test")
    assert len(split) == 2
    broken = tmp_path / "root" / "food-101" / "images" / split.name(1)
    broken.write_bytes(b"no image")
    assert split.image(0).shape == (9, 12, 3)
    with pytest.raises(BadImage):
        split.image(1)
    assert split.class_names == ("apple_pie", "waffles")


class FakeCifar:
    tgz_md5 = "0123"

    def __init__(self, root, train, download):
        count = 4 if train else 2
        self.data = np.full((count, 32, 32, 3), count, dtype=np.uint8)
        self.targets = [0, 1] * (count // 2)


class FakeStl:
    tgz_md5 = "4567"

    def __init__(self, root, split, download):
        count = {"train": 2, "test": 3, "unlabeled": 5}[split]
        self.data = np.zeros((count, 3, 96, 96), dtype=np.uint8)
        self.data[:, 2] = 7
        self.labels = np.arange(count) % 2 if split != "unlabeled" else np.full(count, -1)


@pytest.mark.parametrize("kind", [Cifar10, Cifar100])
def test_cifar_comes_from_torchvision(monkeypatch, kind):
    monkeypatch.setattr(torchvision.datasets, kind.dataset, FakeCifar)
    train, test = kind().split("train"), kind().split("test")
    assert (len(train), len(test)) == (4, 2)
    assert train.image(1).shape == (32, 32, 3)
    assert test.labels().tolist() == [0, 1]
    assert train.identity() != test.identity()


def test_stl10_channels_come_last_and_pretraining_may_take_the_unlabeled_part(monkeypatch):
    monkeypatch.setattr(torchvision.datasets, "STL10", FakeStl)
    labeled, unlabeled = Stl10(), Stl10(train_split="unlabeled")
    assert labeled.split("train").labels().tolist() == [0, 1]
    assert labeled.has_labels and not unlabeled.has_labels
    train = unlabeled.split("train")
    assert len(train) == 5
    assert train.image(0).shape == (96, 96, 3)
    assert train.image(0)[0, 0].tolist() == [0, 0, 7]
    assert train.class_names is None
    with pytest.raises(UserError, match="no labels"):
        train.labels()
    assert unlabeled.split("test").labels().tolist() == [0, 1, 0]


@pytest.mark.parametrize("error", [OSError("no network\nat all"), RuntimeError("corrupted")])
def test_any_reason_of_a_failed_download_is_given_on_one_line(monkeypatch, error):
    def fail(*_, **__):
        raise error

    fail.tgz_md5 = "0"
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", fail)
    with pytest.raises(UserError, match=r"data.kind=cifar10.*root 'some/where'") as caught:
        len(Cifar10(root="some/where").split("train"))
    assert "\n" not in str(caught.value)
