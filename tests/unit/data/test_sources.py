import os
from hashlib import sha256

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from ssdistill.data.decode import BadImage
from ssdistill.data.recipes import RECIPES
from ssdistill.data.sources.digits import Digits
from ssdistill.data.sources.folder import Folder
from ssdistill.data.sources.npz import Npz
from ssdistill.errors import UserError
from ssdistill.settings.registry import SOURCES


def put(folder, *names, color=(10, 20, 30)):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), color).save(folder / name)


def names_of(split):
    return [split.name(i) for i in range(len(split))]


def test_every_kind_is_in_the_registry_with_its_settings():
    known = {"digits", "npz", "folder", "cifar10", "cifar100", "stl10", "fashion_mnist", "svhn"}
    assert known | {"flowers102", "pets", "dtd", "food101"} <= set(SOURCES.classes)
    settings = SOURCES.schema("folder")(path="x", test_fraction=0.3)
    source = SOURCES.build(settings)
    assert source.settings == {"path": "x", "test_fraction": 0.3}


def test_an_unknown_split_is_refused():
    with pytest.raises(UserError, match=r"unknown split 'tets'.*test"):
        Digits().split("tets")


# digits


def test_digits_are_split_1297_to_500_with_all_classes():
    train, test = Digits().split("train"), Digits().split("test")
    assert (len(train), len(test)) == (1297, 500)
    assert np.bincount(test.labels()).min() >= 45
    assert train.labels().dtype == np.int64
    assert train.class_names == tuple("0123456789")


def test_digits_fill_the_range_of_a_byte_and_are_gray_rgb():
    image = Digits().split("train").array()
    assert image.shape == (1297, 8, 8, 3)
    assert (image.min(), image.max()) == (0, 255)
    assert (image[..., 0] == image[..., 2]).all()


def test_digits_are_the_same_split_each_time_and_no_picture_is_in_both():
    first, again = Digits().split("train"), Digits().split("train")
    assert first.identity() == again.identity() != Digits().split("test").identity()
    both = np.concatenate([Digits().split(name).array()[..., 0] for name in ("train", "test")])
    every = np.rint(load_digits().images * (255 / 16)).astype(np.uint8)
    assert sorted(map(bytes, both)) == sorted(map(bytes, every))


# npz


@pytest.fixture
def npz(tmp_path):
    def write(**changes):
        rng = np.random.default_rng(0)
        arrays = {
            "train_images": rng.integers(0, 256, (6, 5, 5, 3), dtype=np.uint8),
            "train_labels": np.array([[0], [1], [2], [0], [1], [2]], dtype=np.uint8),
            "test_images": rng.integers(0, 256, (3, 5, 5, 3), dtype=np.uint8),
            "test_labels": np.array([[2], [1], [0]], dtype=np.uint8),
            "val_images": np.zeros((1, 5, 5, 3), dtype=np.uint8),
        }
        arrays |= changes
        path = tmp_path / "set.npz"
        np.savez_compressed(path, **{k: v for k, v in arrays.items() if v is not None})
        return Npz(path=str(path)), arrays

    return write


def test_npz_gives_images_and_flattened_labels(npz):
    source, arrays = npz()
    split = source.split("train")
    assert np.array_equal(split.image(2), arrays["train_images"][2])
    assert split.labels().tolist() == [0, 1, 2, 0, 1, 2]
    assert split.class_names is None
    assert source.default_image_size == 5
    assert source.has_labels


def test_npz_pictures_that_are_left_out_are_named_with_their_number(npz):
    source, _ = npz(extra_images=np.zeros((4, 5, 5), np.uint8))
    (warning,) = source.warnings(False)
    assert "ignoring val_images (1 images), extra_images (4 images), since only " in warning
    assert npz(val_images=None)[0].warnings(True) == ()
    assert npz(val_images=None, val_labels=np.zeros(3))[0].warnings(True) == ()


def test_npz_class_names_are_read(npz):
    source, _ = npz(class_names=np.array(["cat", "dog", "emu"]))
    assert source.split("test").class_names == ("cat", "dog", "emu")


def test_npz_gray_images_become_rgb(npz):
    gray = np.arange(6 * 28 * 28, dtype=np.uint16).astype(np.uint8).reshape(6, 28, 28)
    source, _ = npz(train_images=gray)
    assert source.default_image_size == 28
    image = source.split("train").image(3)
    assert image.shape == (28, 28, 3)
    assert np.array_equal(image[..., 1], gray[3])


def test_npz_without_labels_is_unlabeled(npz):
    source, _ = npz(train_labels=None, test_labels=None)
    assert not source.has_labels
    assert source.split("train").class_names is None
    with pytest.raises(UserError, match=r"set.npz \(train\) has no labels"):
        source.split("train").labels()


def test_npz_identity_follows_the_pixels_and_not_the_labels(npz):
    source, arrays = npz()
    before = source.split("train").identity()
    relabeled, _ = npz(train_labels=np.zeros(6, dtype=np.uint8))
    assert relabeled.split("train").identity() == before
    changed, _ = npz(train_images=255 - arrays["train_images"])
    assert changed.split("train").identity() != before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_images": None}, "no array has a usual name"),
        ({"train_images": np.zeros((6, 5, 5, 3))}, "'train_images' is float64, but"),
        ({"train_images": np.zeros((6, 5, 5, 4), np.uint8)}, "6 x 5 x 5 x 4"),
        ({"train_labels": np.full((6, 14), 2)}, "'train_labels' must be 0 or 1 for each class"),
        ({"train_labels": np.zeros(5, np.uint8)}, "each of the 6 images"),
        ({"train_labels": np.full(6, 0.5)}, "float64"),
        ({"train_labels": np.array([None] * 6)}, "cannot read 'train_labels'"),
    ],
)
def test_npz_says_what_is_wrong_with_a_file(npz, changes, message):
    source, _ = npz(**changes)
    with pytest.raises(UserError, match=message) as caught:
        source.split("train").labels()
    assert "\n" not in str(caught.value)


def test_npz_names_a_missing_file_and_one_that_is_no_npz(tmp_path):
    with pytest.raises(UserError, match=r"gone.npz: no such file or folder; check the path"):
        Npz(path=str(tmp_path / "gone.npz")).split("train")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(UserError, match=r"text.npz: not an .npz file"):
        Npz(path=str(tmp_path / "text.npz")).split("train")


# folder


def test_class_folders_are_labels_and_a_stratified_test_split_is_held_out(tmp_path):
    put(tmp_path, *(f"{c}/{i:02d}.png" for c in ("dog", "cat") for i in range(10)))
    source = Folder(path=str(tmp_path))
    train, test = source.split("train"), source.split("test")
    assert source.has_labels
    assert train.class_names == test.class_names == ("cat", "dog")
    assert np.bincount(train.labels()).tolist() == [8, 8]
    assert np.bincount(test.labels()).tolist() == [2, 2]
    assert names_of(train) == sorted(names_of(train))
    assert not set(names_of(train)) & set(names_of(test))
    for split in (train, test):
        classes = [split.class_names[k] for k in split.labels()]
        assert classes == [name.split("/")[0] for name in names_of(split)]


def test_the_held_out_pictures_depend_on_their_relative_names_alone(tmp_path):
    files = [f"{c}/{i}.png" for c in ("a", "b") for i in range(8)]
    put(tmp_path / "one", *files)
    put(tmp_path / "elsewhere", *reversed(files))
    splits = [Folder(path=str(tmp_path / p)).split("test") for p in ("one", "elsewhere")]
    assert names_of(splits[0]) == names_of(splits[1])
    by_hash = {
        c: sorted((f"{c}/{i}.png" for i in range(8)), key=lambda n: sha256(n.encode()).digest())
        for c in ("a", "b")
    }
    assert names_of(splits[0]) == sorted(by_hash["a"][:2] + by_hash["b"][:2])


def test_the_held_out_pictures_are_not_the_first_names(tmp_path):
    put(tmp_path, *(f"c/{i:02}.png" for i in range(30)))
    held_out = names_of(Folder(path=str(tmp_path)).split("test"))
    numbers = ("13", "14", "15", "17", "21", "27")
    assert held_out == [f"c/{number}.png" for number in numbers]
    put(tmp_path, *(f"c/{i:02}.png" for i in range(30, 35)))
    later = set(names_of(Folder(path=str(tmp_path)).split("test")))
    assert len(set(held_out) & later) >= len(held_out) - 1


def test_test_fraction_sets_the_share_and_no_class_is_used_up(tmp_path):
    put(tmp_path, *(f"big/{i}.png" for i in range(10)), "small/0.png", "small/1.png", "one/0.png")
    test = Folder(path=str(tmp_path), test_fraction=0.9).split("test")
    assert sorted(n.split("/")[0] for n in names_of(test)) == ["big"] * 9 + ["small"]
    all_train = Folder(path=str(tmp_path), test_fraction=0.0)
    assert len(all_train.split("train")) == 13
    with pytest.raises(UserError, match=r"no test images; raise data\.test_fraction \(now 0\.0\)"):
        all_train.split("test")


@pytest.mark.parametrize("part", ["test", "val"])
def test_given_splits_are_taken_as_they_are(tmp_path, part):
    put(tmp_path, "train/a/1.png", "train/b/2.png", f"{part}/a/3.png", "extra/4.png", "5.png")
    source = Folder(path=str(tmp_path))
    assert names_of(source.split("train")) == ["train/a/1.png", "train/b/2.png"]
    assert names_of(source.split("test")) == [f"{part}/a/3.png"]
    assert source.split("test").class_names == ("a", "b")
    assert "2 other files skipped" in source.description


def test_a_labeled_val_is_preferred_to_a_flat_test(tmp_path):
    put(tmp_path, "train/a/1.png", "train/b/2.png", "test/3.png", "val/b/4.png")
    test = Folder(path=str(tmp_path)).split("test")
    assert names_of(test) == ["val/b/4.png"]
    assert test.labels().tolist() == [1]


def test_train_alone_is_split_like_any_folder(tmp_path):
    put(tmp_path, *(f"train/{c}/{i}.png" for c in "ab" for i in range(5)))
    source = Folder(path=str(tmp_path))
    assert source.split("train").class_names == ("a", "b")
    assert (len(source.split("train")), len(source.split("test"))) == (8, 2)


def test_a_flat_folder_is_unlabeled_with_a_tenth_held_out(tmp_path):
    put(tmp_path, *(f"{i:02d}.png" for i in range(20)))
    source = Folder(path=str(tmp_path))
    train, test = source.split("train"), source.split("test")
    assert not source.has_labels
    assert (len(train), len(test)) == (18, 2)
    assert train.class_names is None
    with pytest.raises(UserError, match=r"train.* has no labels"):
        train.labels()


def test_pictures_beside_class_folders_make_all_unlabeled(tmp_path):
    put(tmp_path, "a/1.png", "a/2.png", "b/1.png", "loose.png")
    assert not Folder(path=str(tmp_path)).has_labels


def test_deeper_folders_belong_to_the_topmost(tmp_path):
    put(tmp_path, "a/x/1.png", "a/y/z/2.png", "b/3.png", "b/4.png")
    train = Folder(path=str(tmp_path)).split("train")
    assert train.class_names == ("a", "b")


def test_a_single_class_is_still_labeled(tmp_path):
    put(tmp_path, *(f"only/{i}.png" for i in range(5)))
    source = Folder(path=str(tmp_path))
    assert source.has_labels
    assert source.split("train").labels().tolist() == [0, 0, 0, 0]


def test_hidden_files_and_other_files_are_skipped_and_counted(tmp_path):
    put(tmp_path, "a.png", "b.JPG", ".hidden.png", ".git/c.png", "d.webp")
    (tmp_path / "notes.txt").write_text("x")
    source = Folder(path=str(tmp_path), test_fraction=0.0)
    assert names_of(source.split("train")) == ["a.png", "b.JPG", "d.webp"]
    assert "2 other files skipped" in source.description


def test_linked_folders_are_followed_and_circles_are_not(tmp_path):
    put(tmp_path / "elsewhere", "x.png")
    put(tmp_path / "set", "a/1.png", "b/2.png")
    (tmp_path / "set" / "c").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "a" / "up").symlink_to(tmp_path / "set")
    (tmp_path / "set" / "b" / "side").symlink_to(tmp_path / "set" / "a")
    source = Folder(path=str(tmp_path / "set"), test_fraction=0.0)
    assert names_of(source.split("train")) == ["a/1.png", "b/2.png", "b/side/1.png", "c/x.png"]


def test_a_file_of_the_same_size_but_other_content_changes_the_identity(tmp_path):
    put(tmp_path, "a.bmp", "b.bmp")
    before = Folder(path=str(tmp_path), test_fraction=0.0).split("train").identity()
    put(tmp_path, "a.bmp", color=(99, 0, 0))
    os.utime(tmp_path / "a.bmp", ns=(1, 1))
    assert Folder(path=str(tmp_path), test_fraction=0.0).split("train").identity() != before


def test_an_unreadable_picture_is_found_when_it_is_read(tmp_path):
    put(tmp_path, "a.png")
    (tmp_path / "b.png").write_bytes(b"")
    (tmp_path / "c.png").symlink_to(tmp_path / "gone.png")
    split = Folder(path=str(tmp_path), test_fraction=0.0).split("train")
    assert split.identity()
    assert split.image(0)[0, 0].tolist() == [10, 20, 30]
    for i in (1, 2):
        with pytest.raises(BadImage):
            split.image(i)


def test_a_folder_that_cannot_be_used_is_named(tmp_path):
    with pytest.raises(UserError, match="gone: no such file or folder"):
        Folder(path=str(tmp_path / "gone")).split("train")
    (tmp_path / "readme.txt").write_text("x")
    with pytest.raises(UserError, match=r"no images in this folder \(1 other files: 1 .txt\)"):
        Folder(path=str(tmp_path)).split("train")
    with pytest.raises(UserError, match="a file, not a folder"):
        Folder(path=str(tmp_path / "readme.txt")).has_labels  # noqa: B018


def test_a_default_recipe_is_a_recipe():
    recipes = [cls.default_recipe for cls in SOURCES.classes.values()]
    assert Digits.default_recipe == "digits"
    assert set(recipes) - {None} <= set(RECIPES)
