"""Which values of deep images are stored as black and white, and how this is reported."""

import json
import logging

import numpy as np
import pytest
from PIL import Image
from raw_files import tiff

from ssdistill.commands.listing import description
from ssdistill.data import store as store_module
from ssdistill.data.held_pixels import Holding
from ssdistill.data.opening import open_source, open_stores
from ssdistill.data.sources.folder import Folder
from ssdistill.data.sources.npz import Npz
from ssdistill.data.store import open_store
from ssdistill.data.store_places import folder_of
from ssdistill.errors import UserError
from ssdistill.settings.registry import SOURCES


def put(folder, values, name="{}.png", classes=("a", "b")):
    """One image of the values for each class and each of ten numbers."""
    for label in classes:
        (folder / label).mkdir(parents=True, exist_ok=True)
        for number in range(10):
            Image.fromarray(values).save(folder / label / name.format(number))


@pytest.fixture
def twelve_bit(tmp_path):
    """Gray from 200 to 4095 in 16-bit PNGs, as microscopes write them."""
    ramp = np.linspace(200, 4095, 64).astype(np.uint16).reshape(8, 8)
    put(tmp_path / "set", ramp)
    return tmp_path / "set"


def opened(path, root, **changes):
    settings = SOURCES.schema("folder")(path=str(path), image_size=8, **changes)
    return open_stores(open_source(settings), settings, 8, root)


def test_the_window_reaches_from_the_smallest_to_the_largest_training_value(twelve_bit, tmp_path):
    for store in opened(twelve_bit, tmp_path).values():
        assert store.window == (200.0, 4095.0)
        assert (store.images.min(), store.images.max()) == (0, 255)
        assert store.notices == []
        assert json.loads((store.folder / "store.json").read_text())["window"] == [200, 4095]


def test_the_training_pictures_decide_for_the_test_pictures(tmp_path, caplog):
    for split, values in (("train", [[0, 1000]]), ("test", [[500, 2000]])):
        put(tmp_path / "set" / split, np.array(values, np.uint16).repeat(8, 0).repeat(4, 1))
    with caplog.at_level(logging.WARNING):
        stores = opened(tmp_path / "set", tmp_path)
    assert stores["test"].window == (0.0, 1000.0)
    assert set(np.unique(stores["test"].images)) == {128, 255}
    assert "50.0% of the pixels are clipped: they lie beyond data.window=[0, 1000]" in caplog.text


@pytest.mark.parametrize(
    ("window", "expected"),
    [("full", (0, 65535)), ((0, 8190), (0, 8190)), ((1000, 2000), (1000, 2000))],
)
def test_a_window_can_be_set_and_makes_another_store(twelve_bit, tmp_path, window, expected):
    auto = opened(twelve_bit, tmp_path)["train"]
    store = opened(twelve_bit, tmp_path, window=window)["train"]
    assert store.window == expected
    assert store.folder != auto.folder and store.fingerprint != auto.fingerprint
    low, high = expected
    middle = 255 * (4095 - low) / (high - low)
    assert store.images.max() == min(255, round(middle))
    assert opened(twelve_bit, tmp_path, window=window)["train"].folder == store.folder


def test_less_than_a_tenth_of_the_range_is_warned_of_with_the_key(twelve_bit, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        opened(twelve_bit, tmp_path, window="full")
    assert "stored pixels span only 1 to 16" in caplog.text
    assert "data.window is [0, 65535]; set it" in caplog.text
    assert "\n" not in caplog.messages[0]


def test_one_hot_pixel_does_not_hide_that_the_rest_is_black(tmp_path, caplog):
    values = np.full((40, 40), 300, dtype=np.uint16)
    values[::2], values[3, 3] = 340, 65535
    put(tmp_path / "set", values)
    with caplog.at_level(logging.WARNING):
        open_store(Folder(path=str(tmp_path / "set")), "train", 40, tmp_path)
    assert "nearly all stored pixels lie within a tenth" in caplog.text


def test_narrow_8_bit_pictures_are_warned_of_and_stored_as_they_are(tmp_path, caplog):
    put(tmp_path / "set", np.arange(16, dtype=np.uint8).reshape(4, 4))
    with caplog.at_level(logging.WARNING):
        store = open_store(Folder(path=str(tmp_path / "set")), "train", 4, tmp_path)
    assert store.images.max() == 15 and store.window is None
    assert "span only 0 to 15" in caplog.text and "rescale their" in caplog.text


def test_a_window_that_nothing_uses_is_said(tmp_path, caplog):
    put(tmp_path / "set", np.arange(0, 256, 4, dtype=np.uint8).reshape(8, 8))
    with caplog.at_level(logging.WARNING):
        stores = opened(tmp_path / "set", tmp_path, window=(0, 100))
    assert "ignoring data.window=[0.0, 100.0], since all images have 8 bits" in caplog.text
    assert stores["train"].folder == opened(tmp_path / "set", tmp_path)["train"].folder


def test_8_bit_pictures_between_deep_ones_keep_their_bytes(tmp_path):
    put(tmp_path / "set", np.full((4, 4), 4000, np.uint16))
    put(tmp_path / "set", np.full((4, 4), 90, np.uint8), name="plain{}.png")
    put(tmp_path / "set", np.zeros((4, 4), np.uint16), name="dark{}.png")
    store = open_store(Folder(path=str(tmp_path / "set")), "train", 4, tmp_path)
    assert set(np.unique(store.images)) == {0, 90, 255}


def test_signed_and_fractional_tiffs_have_a_window_of_their_values(tmp_path):
    for kind in (np.int16, np.float32):
        folder = tmp_path / np.dtype(kind).name
        folder.mkdir()
        for number in range(4):
            values = np.linspace(-1000, 1000, 16).astype(kind).reshape(4, 4)
            (folder / f"{number}.tif").write_bytes(tiff(values))
        store = open_store(Folder(path=str(folder), test_fraction=0.0), "train", 4, tmp_path)
        assert store.window == (-1000.0, 1000.0)
        assert (store.images.min(), store.images.max()) == (0, 255)


def test_full_of_several_types_is_refused(tmp_path):
    for number, kind in enumerate((np.uint16, np.float32)):
        values = np.linspace(0, 1000, 16).astype(kind).reshape(4, 4)
        (tmp_path / f"{number}.tif").write_bytes(tiff(values))
    with pytest.raises(
        UserError, match=r"data\.window=full: .* several pixel types; set data\.window"
    ):
        open_store(Folder(path=str(tmp_path)), "train", 4, tmp_path / "stores", window="full")


def npz(folder, images, **more):
    np.savez(folder / "a.npz", train_images=images, test_images=images[:2], **more)
    return Npz(path=str(folder / "a.npz"))


@pytest.mark.parametrize(
    ("images", "window"),
    [
        (np.linspace(0, 4095, 64).astype(np.uint16), (0, 4095)),
        (np.linspace(0, 4095, 64).astype(">u2"), (0, 4095)),
        (np.linspace(-5, 5, 64).astype(np.int8), (-5, 5)),
        (np.linspace(0, 255, 64).astype(np.int64), (0, 255)),
        (np.linspace(0.1, 0.9, 64).astype(np.float32), (0, 1)),
        (np.linspace(0, 1, 64).astype(np.float16), (0, 1)),
        (np.arange(64) % 2 == 0, (0, 1)),
    ],
    ids=lambda value: str(value.dtype) if hasattr(value, "dtype") else "",
)
def test_arrays_of_other_numbers_have_a_window(tmp_path, images, window):
    images = images.reshape(4, 4, 4)
    for source in (npz(tmp_path, images), npz(tmp_path, images[..., None].repeat(3, 3))):
        store = open_store(source, "train", 4, tmp_path)
        assert store.window == window
        low, high = window
        expected = np.floor((images.astype(float) - low) * 255 / (high - low) + 0.5)
        assert np.array_equal(store.images[..., 1], expected)


@pytest.mark.parametrize("high", [1.5, 255.0])
def test_fractions_beyond_0_to_1_need_a_window(tmp_path, high):
    source = npz(tmp_path, np.linspace(0, high, 64, dtype=np.float32).reshape(4, 4, 4))
    with pytest.raises(
        UserError, match=rf"from 0 to {high:g}, beyond .*set data\.window=\[0, {high:g}\]"
    ):
        open_store(source, "train", 4, tmp_path)
    store = open_store(source, "train", 4, tmp_path, window=(0.0, high))
    assert store.images.max() == 255


def test_arrays_with_values_that_are_not_finite_are_refused_by_row(tmp_path):
    images = np.full((4, 4, 4), 0.5)
    images[2, 1, 1] = np.nan
    with pytest.raises(UserError, match=r"\(first: 000002: NaN or infinite pixels\)"):
        open_store(npz(tmp_path, images), "train", 4, tmp_path)


def test_the_values_are_measured_once(twelve_bit, tmp_path, monkeypatch):
    opened(twelve_bit, tmp_path)
    monkeypatch.setattr("ssdistill.data.window._measured", lambda raw: 1 / 0)
    assert opened(twelve_bit, tmp_path)["test"].window == (200.0, 4095.0)


def test_a_store_of_the_first_version_is_not_taken_for_deep_pictures(twelve_bit, tmp_path):
    """It lies under the name that says nothing of a window, and is nearly black."""
    source = Folder(path=str(twelve_bit))
    raw = source.split("train")
    old = folder_of(source, raw, "train", 8, tmp_path, [])
    store_module._make(old, raw, 8, 0.0, Holding(window=(0.0, 65535.0)), False)
    (old / store_module.CHECKSUMS).unlink()
    store = open_store(source, "train", 8, tmp_path)
    assert store.folder != old and store.images.max() == 255


def test_settings_at_their_defaults_leave_no_trace():
    schema = SOURCES.schema("folder")
    assert set(schema(path="x").model_dump()) == {
        "kind",
        "path",
        "test_fraction",
        "image_size",
        "max_bad",
    }
    changed = schema(path="x", window=[0, 5], labels="none", max_pixels=9).model_dump(mode="json")
    assert (changed["window"], changed["labels"], changed["max_pixels"]) == ([0, 5], "none", 9)
    assert schema(**changed) == schema(path="x", window=[0, 5], labels="none", max_pixels=9)


def test_the_settings_of_every_source_are_explained_where_they_are_listed():
    _, text, table = description("sources", "folder")
    assert "window: for images of more than 8 bits" in text.plain
    assert "labels: none ignores labels" in text.plain
    assert {"window", "labels", "max_pixels"} <= {str(cell) for cell in table.columns[0].cells}


@pytest.mark.parametrize("window", [[5, 5], [9, 1], [0, float("inf")], [float("nan"), 1], "wide"])
def test_a_window_without_an_inside_is_refused(window):
    with pytest.raises(ValueError, match="window"):
        SOURCES.schema("folder")(path="x", window=window)


def stored(tmp_path, images, setting="auto"):
    path = tmp_path / "a.npz"
    np.savez(path, train_images=images, test_images=images)
    settings = SOURCES.schema("npz")(path=str(path), window=setting)
    return open_stores(open_source(settings), settings, images.shape[1], tmp_path / "stores")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [2**64 - 1, 2**53, 0])
def test_one_value_is_black_however_large_it_is(tmp_path, value):
    """2**64 - 1 + 1.0 is 2**64 - 1 as a float, and its width was 0."""
    assert stored(tmp_path, np.full((4, 8, 8), value, np.uint64))["train"].images.max() == 0


@pytest.mark.parametrize("window", [(-1e308, 1e308), (0, 1e-320), (5, 1), (1, 1)])
def test_a_window_that_nothing_can_be_divided_by_is_refused(window):
    with pytest.raises(ValueError, match=r"requires (a narrower or wider range|low < high)"):
        SOURCES.schema("npz")(path="a.npz", window=window)


def test_pictures_that_all_have_no_value_get_the_reason(tmp_path):
    with pytest.raises(UserError, match=r"first: 000000: NaN or infinite pixels\)"):
        stored(tmp_path, np.full((4, 8, 8), np.nan))
