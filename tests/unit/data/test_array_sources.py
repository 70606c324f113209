"""Arrays in npz and npy files: names, axes, what is held out."""

import os

import numpy as np
import pytest

from ssdistill.data.array_names import Names, find_names
from ssdistill.data.held_out import held_out_by_number
from ssdistill.data.layouts import arrangement
from ssdistill.data.opening import open_source
from ssdistill.data.sources.npy import Npy
from ssdistill.data.sources.npz import Npz
from ssdistill.data.splitmix import number_hashes
from ssdistill.data.store import open_store
from ssdistill.errors import UserError
from ssdistill.settings.registry import SOURCES

RGB = np.random.default_rng(0).integers(0, 256, (10, 6, 5, 3), dtype=np.uint8)
GRAY = RGB[..., 0]
LABELS = np.arange(10) % 3


def read(source, split="train"):
    part = source.split(split)
    return np.stack([part.image(i) for i in range(len(part))])


def npy(tmp_path, array, **settings):
    np.save(tmp_path / "a.npy", array)
    return Npy(path=str(tmp_path / "a.npy"), test_fraction=0, **settings)


# axes


@pytest.mark.parametrize(
    ("array", "layout", "expected"),
    [
        (RGB, "auto", RGB),
        (RGB.transpose(0, 3, 1, 2), "auto", RGB),
        (np.ascontiguousarray(RGB.transpose(0, 3, 1, 2)), "NCHW", RGB),
        (np.asfortranarray(RGB), "auto", RGB),
        (GRAY, "auto", np.repeat(GRAY[..., None], 3, 3)),
        (GRAY[..., None], "auto", np.repeat(GRAY[..., None], 3, 3)),
        (GRAY[:, None], "auto", np.repeat(GRAY[..., None], 3, 3)),
        (RGB[:, :5].reshape(10, -1), "NHWC", RGB[:, :5]),
        (RGB[:, :5].transpose(0, 3, 1, 2).reshape(10, -1), "NCHW", RGB[:, :5]),
        (GRAY[:, :5].reshape(10, -1), "auto", np.repeat(GRAY[:, :5, :, None], 3, 3)),
        (RGB[:, :3], "NHWC", RGB[:, :3]),
        (RGB[:, :, :3].transpose(0, 3, 1, 2), "NCHW", RGB[:, :, :3]),
    ],
)
def test_axes_are_found_by_the_shape_or_set(tmp_path, array, layout, expected):
    assert np.array_equal(read(npy(tmp_path, array, layout=layout)), expected)


@pytest.mark.parametrize(
    ("shape", "layout", "words"),
    [
        ((9, 3, 5, 3), "auto", "may be first or last; set data.layout"),
        ((9, 1, 5, 1), "auto", "may be first or last"),
        ((9, 3072), "auto", "32 x 32, stored by plane or by pixel; set data.layout"),
        ((480, 640, 3), "auto", "one color image, or several gray images"),
        ((9, 5, 5, 3), "NCHW", "data.layout=NCHW does not match"),
        ((9, 3, 5, 5), "NHWC", "data.layout=NHWC does not match"),
        ((9, 5, 5), "NHWC", "requires four axes"),
        ((9, 5, 5, 4), "auto", "keep three channels"),
        ((9, 4, 5, 5), "auto", "keep three channels"),
        ((9, 28), "auto", "not square images"),
        ((0, 5, 5), "auto", "add images"),
        ((9,), "auto", "reshape it"),
        ((9, 5, 5, 3, 1), "auto", "reshape it"),
    ],
)
def test_a_shape_that_says_too_little_is_refused_with_what_to_do(shape, layout, words):
    with pytest.raises(UserError) as caught:
        arrangement(shape, np.dtype("u1"), layout, "data.path=x")
    assert words in str(caught.value) and "data.path=x" in str(caught.value)


def test_an_array_that_names_itself_is_read_as_it_was():
    found = arrangement((9, 3, 5, 3), np.dtype("u1"), "auto", "x", certain=True)
    assert found.axes == "NHWC" and found.sides == (3, 5)
    assert arrangement((9, 5, 3), np.dtype("u1"), "auto", "x", certain=True).axes == "NHW"


# names


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (["x_train", "y_train", "x_test", "y_test"], ("x_train", "y_train", "x_test", "y_test")),
        (["X_train", "Y_Train"], ("X_train", "Y_Train", None, None)),
        (["images", "labels"], ("images", "labels", None, None)),
        (["data", "labels", "filenames"], ("data", "labels", None, None)),
        (["data", "fine_labels", "coarse_labels"], ("data", "fine_labels", None, None)),
        (["arr_0", "arr_1"], ("arr_0", None, None, None)),
        (["X", "y"], ("X", "y", None, None)),
        (
            ["train_images", "val_images", "test_images", "test_labels"],
            ("train_images", None, "test_images", "test_labels"),
        ),
        (["train_images", "val_images"], ("train_images", None, "val_images", None)),
        (
            ["train/images", "train/labels", "test/images"],
            ("train/images", "train/labels", "test/images", None),
        ),
    ],
)
def test_usual_names_are_found(keys, expected):
    assert find_names(keys, Names(), "f") == Names(*expected)


def test_names_are_asked_for_where_they_are_not_clear():
    with pytest.raises(UserError, match=r"several names: images, data; set data.image_key"):
        find_names(["images", "data"], Names(), "f")
    with pytest.raises(UserError, match=r"found pixels; set data.image_key"):
        find_names(["pixels"], Names(), "f")
    with pytest.raises(UserError, match=r"no array 'pixel' \(did you mean 'pixels'\?\)"):
        find_names(["pixels"], Names(images="pixel"), "f")
    assert find_names(["images", "data"], Names(images="data"), "f") == Names("data")


def test_an_npz_says_which_names_it_took_unless_they_are_the_first_ones(tmp_path):
    np.savez(tmp_path / "a.npz", x_train=RGB, y_train=LABELS)
    source = Npz(path=str(tmp_path / "a.npz"))
    assert source.description == "a.npz (images 'x_train', labels 'y_train'), labeled"
    np.savez(tmp_path / "b.npz", train_images=RGB, test_images=RGB)
    assert Npz(path=str(tmp_path / "b.npz")).description == "b.npz, unlabeled"


def test_new_settings_of_npz_enter_no_digest_at_their_defaults(tmp_path):
    np.savez(tmp_path / "a.npz", x=RGB)
    path = str(tmp_path / "a.npz")
    assert Npz(path=path).settings == {"path": path}
    dumped = SOURCES.schema("npz")(path=path).model_dump(mode="json")
    assert set(dumped) == {"kind", "path", "image_size", "max_bad"}
    changed = SOURCES.schema("npz")(path=path, layout="NHWC")
    assert changed.model_dump()["layout"] == "NHWC"
    assert open_source(changed).settings == {"path": path, "layout": "NHWC"}


# held out


def test_numbers_are_held_out_the_same_each_time_and_once_only():
    train, test = held_out_by_number(1000, None, labeled=True)
    assert len(test) == 200 and sorted([*train, *test]) == list(range(1000))
    assert np.array_equal(held_out_by_number(1000, None, True)[1], test)
    assert test.dtype == np.uint32 and (np.diff(test.astype(int)) > 0).all()
    assert len(held_out_by_number(1000, None, False)[1]) == 100
    # Evenly, not from one end.
    assert 60 < (test < 500).sum() < 140


def test_few_images_are_trained_on_unless_some_are_asked_for():
    assert held_out_by_number(2, None, False)[0] is None
    assert len(held_out_by_number(2, 0.1, False)[1]) == 1
    assert len(held_out_by_number(1, 0.5, False)[1]) == 0
    assert held_out_by_number(9, 0.0, False)[0] is None


def test_hashes_of_other_keys_have_nothing_in_common():
    number_N = np.arange(10_000)
    assert len(np.unique(number_hashes(number_N))) == 10_000
    assert not np.isin(number_hashes(number_N, 1), number_hashes(number_N, 2)).any()


def test_an_npz_without_test_images_holds_some_out_with_their_labels(tmp_path):
    np.savez(tmp_path / "a.npz", images=RGB, labels=LABELS)
    source = Npz(path=str(tmp_path / "a.npz"))
    train, test = source.split("train"), source.split("test")
    assert (len(train), len(test), source.has_labels) == (8, 2, True)
    for part in (train, test):
        rows = [int(part.name(i)) for i in range(len(part))]
        assert np.array_equal(part.labels(), LABELS[rows])
        assert np.array_equal(part.image(1), RGB[rows[1]])
    stores = [open_store(source, name, 5, tmp_path / "s") for name in ("train", "test")]
    assert [len(store) for store in stores] == [8, 2]
    everything = Npz(path=str(tmp_path / "a.npz"), test_fraction=0)
    assert not everything.has_test and len(everything.split("train")) == 10
    with pytest.raises(UserError, match=r"no test images; raise data.test_fraction"):
        everything.split("test")


# npy


def test_npy_is_mapped_and_only_the_rows_asked_for_are_read(tmp_path):
    np.save(tmp_path / "a.npy", RGB)
    part = Npy(path=str(tmp_path / "a.npy")).split("test")
    assert part.array() is None and isinstance(part._images, np.memmap)
    assert np.array_equal(part.image(0), RGB[int(part.name(0))])


def test_two_npy_files_are_the_two_splits(tmp_path):
    names = {}
    for name, array in {"path": RGB, "test_path": RGB[:4], "label_path": LABELS}.items():
        np.save(tmp_path / f"{name}.npy", array)
        names[name] = str(tmp_path / f"{name}.npy")
    source = Npy(**names)
    assert (len(source.split("train")), len(source.split("test"))) == (10, 4)
    assert not source.has_labels  # of the test images there are none
    assert np.array_equal(source.split("train").labels(), LABELS)
    assert "uint8 of 10 x 6 x 5 x 3 read as NHWC" in source.description
    np.save(tmp_path / "test_path.npy", RGB[:4].astype(float))
    with pytest.raises(UserError, match="save both with the same type"):
        Npy(**names).split("train")


def test_deep_npy_goes_through_a_window(tmp_path):
    deep = RGB.astype(np.uint16) * 16
    source = npy(tmp_path, deep)
    store = open_store(source, "train", 5, tmp_path / "s", window=(0, 255 * 16))
    assert np.array_equal(store.images[0], RGB[0, :5]) or store.images.shape == (10, 5, 5, 3)
    assert store.window == (0, 4080)
    source = npy(tmp_path, np.where(RGB > 250, np.nan, RGB / 255).astype(np.float16))
    with pytest.raises(UserError, match="NaN or infinite"):
        open_store(source, "train", 5, tmp_path / "s", max_bad=0)


def test_an_npy_that_changed_is_another(tmp_path):
    first = npy(tmp_path, RGB).split("train").identity()
    assert npy(tmp_path, RGB[:5]).split("train").identity() != first


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda path: None, "no such file or folder; check the path"),
        (lambda path: path.mkdir(), "a folder"),
        (lambda path: os.mkfifo(path), "a named pipe"),
        (lambda path: path.write_bytes(b""), "not an .npy file"),
        (lambda path: np.savez(open(path, "wb"), RGB), "not an .npy file"),  # noqa: SIM115
        (lambda path: path.write_bytes(b"\x93NUMPY\x01\x00\x10\x00{'descr'"), "cannot be read"),
        (lambda path: np.save(path, np.array([{}], object), allow_pickle=True), "cannot be read"),
        (lambda path: (np.save(path, RGB), os.truncate(path, 400)), "cannot be read"),
        (lambda path: np.save(path, np.zeros((3, 5, 5), complex)), "save numbers"),
    ],
)
def test_what_is_no_npy_of_images_is_refused_in_one_line(tmp_path, write, words):
    write(tmp_path / "a.npy")
    with pytest.raises(UserError, match=words) as caught:
        Npy(path=str(tmp_path / "a.npy")).split("train")
    assert "\n" not in str(caught.value) and "data.path=" in str(caught.value)
