"""Chosen channels of any number and depth, in both ways of holding images."""

import io
import json
import logging
import tarfile
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from pydantic import ValidationError

from ssdistill.data import channel_scale, originals, store_writer
from ssdistill.data.bad_image import BadImage
from ssdistill.data.channel_reader import ChannelHeader, read_channels
from ssdistill.data.decode import pixel_limit
from ssdistill.data.geometry import Boxes
from ssdistill.data.opening import open_source, open_stores
from ssdistill.data.settings import StoreSettings
from ssdistill.data.undecoded import Undecoded, known_stores
from ssdistill.errors import UserError
from ssdistill.settings.registry import SOURCES

HOLDINGS = ("stored", "original")
ORIENTATION = 274


def opened(root: Path, size=12, kind="folder", **settings):
    settings = SOURCES.schema(kind)(**settings)
    return open_stores(open_source(settings), settings, size, root)


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def bands_of(n: int, height=24, width=36, channels=5, dtype="u2") -> np.ndarray:
    rng = np.random.default_rng(n)
    low, high = 100 * np.arange(1, channels + 1), 1000 * np.arange(1, channels + 1)
    return rng.integers(low, high, (height, width, channels)).astype(dtype)


@pytest.fixture
def tiffs(tmp_path: Path) -> Path:
    """Five bands of 16 bits: by pixel, by plane, and as pages."""
    folder = tmp_path / "tiffs"
    folder.mkdir()
    for n in range(12):
        values, path = bands_of(n), folder / f"{n:02}.tif"
        if n % 3 == 0:
            tifffile.imwrite(path, values, photometric="minisblack", planarconfig="contig")
        elif n % 3 == 1:
            planes = values.transpose(2, 0, 1)
            tifffile.imwrite(path, planes, photometric="minisblack", planarconfig="separate")
        else:
            with tifffile.TiffWriter(path) as writer:
                for band in range(5):
                    writer.write(np.ascontiguousarray(values[..., band]), contiguous=False)
    return folder


def expected(values: np.ndarray, windows, box, sides=(12, 12)) -> np.ndarray:
    """Each channel through its window, then resized alone by Pillow's bicubic filter."""
    planes = []
    for k, (low, high) in enumerate(windows):
        plane = ((values[..., k].astype("f8") - low) / (high - low)).clip(0, 1).astype("f4")
        image = Image.fromarray(plane).resize(sides, Image.Resampling.BICUBIC, box=box)
        planes.append(np.asarray(image))
    return np.stack(planes, 2).clip(0, 1)


@pytest.mark.parametrize("pixels", HOLDINGS)
def test_five_bands_of_16_bits_are_fractions_of_each_channels_own_range(tiffs, tmp_path, pixels):
    settings = {"path": str(tiffs), "test_fraction": 0, "channels": {"nir": 4, "blue": 0}}
    train = opened(tmp_path / "data", pixels=pixels, **settings)["train"]
    values = [bands_of(n)[..., [4, 0]] for n in range(12)]
    low = [float(min(v[..., k].min() for v in values)) for k in range(2)]
    high = [float(max(v[..., k].max() for v in values)) for k in range(2)]
    assert train.windows == tuple(zip(low, high, strict=True))
    wanted = np.stack([expected(v, train.windows, (6, 0, 30, 24)) for v in values])
    assert train.images.dtype == np.float32
    assert np.array_equal(train.images[:], wanted)
    assert train.channel_names == ("nir", "blue")
    assert np.allclose(train.mean, wanted.mean((0, 1, 2), dtype="f8"), atol=1e-9)
    assert np.allclose(train.std, wanted.std((0, 1, 2), dtype="f8"), atol=1e-9)


@pytest.mark.parametrize("resize", ["crop", "squash", "pad"])
@pytest.mark.parametrize("mode", ["L16", "RGBA", "RGB"])
def test_both_holdings_have_the_same_pixels_of_any_shape(tmp_path, mode, resize):
    folder = tmp_path / "images"
    folder.mkdir()
    for n, (height, width) in enumerate([(30, 50), (70, 20), (33, 33), (32, 64)]):
        bands, dtype = (1, "u2") if mode == "L16" else (4, "u1")
        values = np.random.default_rng(n).integers(0, 256, (height, width, bands)).astype(dtype)
        image = Image.fromarray(values[..., 0] * 99 if mode == "L16" else values)
        (image if mode != "RGB" else image.convert("RGB")).save(folder / f"{n}.png")
    channels = {"L16": [0], "RGBA": [3, 0, 2], "RGB": None}[mode]
    settings = {"path": str(folder), "test_fraction": 0, "channels": channels, "resize": resize}
    one, other = (
        opened(tmp_path / pixels, [32, 64], pixels=pixels, view_size=[16, 48], **settings)["train"]
        for pixels in HOLDINGS
    )
    assert one.images.shape == other.images.shape == (4, 16, 48, 1 if mode == "L16" else 3)
    assert one.images.dtype == other.images.dtype == ("f4" if mode == "L16" else "u1")
    assert np.array_equal(one.images, other.images[:])
    assert np.array_equal(one.stored, other.stored[:])
    assert np.array_equal(one.stored[:, 8:24, 8:56], one.images)
    assert one.mean == pytest.approx(other.mean, abs=1e-12)


def test_crop_squash_and_pad_are_what_their_names_say(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (20, 80, 3)).astype("u1")
    wide = Image.fromarray(pixels)
    wide.save(folder / "wide.png")
    wide.transpose(Image.Transpose.ROTATE_90).save(folder / "tall.png")
    filter_ = Image.Resampling.BICUBIC
    squares = {}
    for resize in ("crop", "squash", "pad"):
        stores = opened(tmp_path / resize, [32, 64], path=str(folder), resize=resize)
        squares[resize] = stores["train"].images[1]
    assert np.array_equal(squares["crop"], wide.resize((64, 32), filter_, box=(20, 0, 60, 20)))
    assert np.array_equal(squares["squash"], wide.resize((64, 32), filter_))
    padded = np.zeros((32, 64, 3), "u1")
    padded[8:24] = np.asarray(wide.resize((64, 16), filter_))
    assert np.array_equal(squares["pad"], padded)
    tall = opened(tmp_path / "t", [32, 64], path=str(folder), resize="pad")["train"].images[0]
    assert not tall[:, :28].any() and not tall[:, 36:].any() and tall[:, 28:36].any()


def test_resizing_does_not_leave_the_range(tmp_path):
    values = np.zeros((1, 16, 16, 2), "u2")
    values[:, 5:11] = 65535
    np.save(tmp_path / "a.npy", values)
    settings = {"kind": "npy", "path": str(tmp_path / "a.npy"), "test_fraction": 0}
    images = opened(tmp_path, 40, channels=[0, 1], window="full", **settings)["train"].images
    assert images.min() == 0 and images.max() == 1


def test_views_are_cut_from_all_channels_of_the_original(tiffs, tmp_path):
    settings = {"path": str(tiffs), "channels": [1, 3, 4, 0], "window": [0, 8000]}
    train = opened(tmp_path, pixels="original", test_fraction=0, **settings)["train"]
    boxes = Boxes(*(torch.tensor([x, x]) for x in (2, 5, 12, 18)))
    (views,) = train.cut(np.array([0, 7]), [boxes], [(6, 9)])
    assert views.shape == (2, 4, 6, 9) and views.dtype == torch.float32
    part = torch.from_numpy(bands_of(7)[2:14, 5:23][..., [1, 3, 4, 0]].astype("f4") / 8000)
    wanted = torch.nn.functional.interpolate(
        part.permute(2, 0, 1)[None], (6, 9), mode="bilinear", antialias=True
    )
    assert torch.allclose(views[1], wanted[0], atol=1e-6)


@pytest.mark.parametrize("pixels", HOLDINGS)
def test_opened_again_nothing_is_decoded_and_all_is_the_same(tiffs, tmp_path, pixels, monkeypatch):
    settings = {"path": str(tiffs), "channels": [0, 2], "pixels": pixels}
    schema = SOURCES.schema("folder")(**settings)
    unknown = known_stores(open_source(schema), schema, 12, tmp_path / "data")["train"]
    assert isinstance(unknown, Undecoded)
    assert unknown.images.shape == (11, 12, 12, 2) and len(unknown.mean) == 2
    first = opened(tmp_path / "data", **settings)
    monkeypatch.setattr("ssdistill.data.file_split.read_channels", None)
    again = known_stores(open_source(schema), schema, 12, tmp_path / "data")
    for split in ("train", "test"):
        assert again[split].fingerprint == first[split].fingerprint
        assert (again[split].mean, again[split].windows) == (
            first[split].mean,
            first[split].windows,
        )


@pytest.mark.parametrize("pixels", HOLDINGS)
def test_other_channels_sizes_and_windows_are_other_images(tiffs, tmp_path, pixels):
    found = {
        opened(tmp_path, size, path=str(tiffs), pixels=pixels, **more)["train"].fingerprint
        for size, more in [
            (12, {"channels": [0, 1]}),
            (12, {"channels": [1, 0]}),
            (12, {"channels": [0, 1], "window": "full"}),
            (12, {"channels": [0, 1], "window": [[0, 9], [0, 99]]}),
            (12, {"channels": [0, 1], "resize": "squash"}),
            ([12, 16], {"channels": [0, 1]}),
        ]
    }
    assert len(found) == 6
    named = opened(tmp_path, path=str(tiffs), pixels=pixels, channels={"a": 0, "b": 1})["train"]
    seen = opened(tmp_path, path=str(tiffs), pixels=pixels, channels=[0, 1], view_size=8)["train"]
    assert named.fingerprint == seen.fingerprint and named.fingerprint in found


@pytest.mark.parametrize("pixels", HOLDINGS)
def test_the_same_bytes_in_another_order_are_other_images(tmp_path, pixels):
    settings = as_list(tmp_path, contents()) | {"pixels": pixels, "test_fraction": 0}
    one, other = (
        opened(tmp_path / "data", 9, channels=channels, **settings)["train"]
        for channels in ([3, 0], [0, 3])
    )
    assert np.array_equal(one.images[:], other.images[:][..., ::-1])
    assert one.fingerprint != other.fingerprint


@pytest.mark.parametrize("pixels", HOLDINGS)
def test_an_image_of_another_type_or_without_a_channel_is_bad(tiffs, tmp_path, pixels, caplog):
    by_pixel = {"photometric": "minisblack", "planarconfig": "contig"}
    tifffile.imwrite(tiffs / "30.tif", bands_of(1, dtype="f4"), **by_pixel)
    tifffile.imwrite(tiffs / "31.tif", bands_of(1, channels=3), **by_pixel)
    settings = {"path": str(tiffs), "test_fraction": 0, "channels": [0, 4], "max_bad": 0.5}
    train = opened(tmp_path / "data", pixels=pixels, **settings)["train"]
    with caplog.at_level(logging.WARNING):
        assert len(np.asarray(train.images[:])) == (12 if pixels == "stored" else 14)
    said = caplog.text if pixels == "original" else str(train.bad)
    assert "float32 values, but the first training image has uint16" in said
    assert "has 3 channels, numbered 0 to 2" in said


def test_a_square_by_its_sides_is_the_square_by_its_side(tiffs, tmp_path):
    for pixels in HOLDINGS:
        settings = {"path": str(tiffs), "channels": [0], "pixels": pixels}
        one, other = (opened(tmp_path, size, **settings)["train"] for size in (9, (9, 9)))
        assert (one.folder, one.fingerprint) == (other.folder, other.fingerprint)


@pytest.mark.parametrize("workers", [1, 3])
def test_views_are_the_same_again_with_any_number_of_workers(tiffs, tmp_path, workers):
    settings = SOURCES.schema("folder")(path=str(tiffs), channels=[0, 4], pixels="original")
    cut = []
    for count in (2, workers):
        store = open_stores(open_source(settings), settings, 12, tmp_path, count)["train"]
        boxes = Boxes(*(torch.full((11,), x) for x in (2, 5, 12, 18)))
        cut.append(store.cut(np.arange(11), [boxes], [8])[0])
    assert torch.equal(*cut)


def test_any_array_with_channels_is_read(tmp_path):
    array = np.random.default_rng(0).random((12, 5, 16, 20)).astype("f4") * 7 - 3
    np.save(tmp_path / "a.npy", array)
    settings = {"kind": "npy", "path": str(tmp_path / "a.npy"), "channels": [4, 0]}
    train = opened(tmp_path / "s", [16, 20], test_fraction=0, **settings)["train"]
    kept = array[:, [4, 0]].transpose(0, 2, 3, 1).astype("f8")
    low, high = kept.min((0, 1, 2)), kept.max((0, 1, 2))
    assert np.array_equal(train.images, ((kept - low) / (high - low)).astype("f4"))
    np.savez(tmp_path / "a.npz", images=(array.transpose(0, 2, 3, 1) * 9).astype("i2"))
    settings |= {"kind": "npz", "path": str(tmp_path / "a.npz"), "window": [0, 40]}
    train = opened(tmp_path / "s", [16, 20], test_fraction=0, **settings)["train"]
    whole = (array.transpose(0, 2, 3, 1) * 9).astype("i2")[..., [4, 0]]
    assert np.allclose(train.images, (whole / 40).clip(0, 1), atol=1e-7)


def test_bytes_stay_bytes_in_arrays_too(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (6, 9, 9, 4)).astype("u1")
    np.save(tmp_path / "a.npy", array)
    settings = {"kind": "npy", "path": str(tmp_path / "a.npy"), "test_fraction": 0}
    train = opened(tmp_path / "s", 9, channels=[3, 1], **settings)["train"]
    assert train.images.dtype == np.uint8 and train.windows is None
    assert np.array_equal(train.images, array[..., [3, 1]])


@pytest.mark.parametrize(
    ("mode", "count"),
    [("L", 1), ("LA", 2), ("RGB", 3), ("RGBA", 4), ("CMYK", 4), ("P", 3), ("1", 1)],
)
def test_modes_have_the_bands_of_the_file(mode, count, tmp_path):
    values = np.random.default_rng(1).integers(0, 256, (6, 9, 3)).astype("u1")
    image, file = Image.fromarray(values).convert(mode), io.BytesIO()
    image.save(file, "TIFF" if mode == "CMYK" else "PNG")
    bands = read_channels(file.getvalue())
    assert bands.shape == (6, 9, count) and bands.dtype == np.uint8
    shown = image.convert({"P": "RGB", "1": "L"}.get(mode, mode))
    assert np.array_equal(bands.squeeze(), np.asarray(shown))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_and_the_header_knows_it(orientation):
    values = bands_of(0, 6, 9)
    file = io.BytesIO()
    tags = [(ORIENTATION, "H", 1, orientation, True)]
    by_pixel = {"photometric": "minisblack", "planarconfig": "contig"}
    tifffile.imwrite(file, values, **by_pixel, extratags=tags)
    bands = read_channels(file.getvalue())
    png, exif = io.BytesIO(), Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(values[..., 1]).save(png, "PNG", exif=exif)
    assert np.array_equal(read_channels(png.getvalue())[..., 0], bands[..., 1])
    turns = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE"}
    turns |= {6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90"}
    image = Image.fromarray(values[..., 1].astype(np.int32))
    if orientation > 1:
        image = image.transpose(Image.Transpose[turns[orientation]])
    assert np.array_equal(bands[..., 1], np.asarray(image))
    for content in (file, png):
        content.seek(0)
        header = ChannelHeader(content, content.getvalue())
        assert (header.height, header.width) == bands.shape[:2]


def test_a_palette_in_a_tiff_is_resolved():
    values = np.random.default_rng(1).integers(0, 256, (6, 9, 3)).astype("u1")
    image, file = Image.fromarray(values).convert("P"), io.BytesIO()
    image.save(file, "TIFF")
    assert np.array_equal(read_channels(file.getvalue()), np.asarray(image.convert("RGB")))


def test_a_folder_with_channels_has_arrays_as_files(tmp_path):
    folder = tmp_path / "arrays"
    folder.mkdir()
    for n in range(4):
        np.save(folder / f"{n}.npy", bands_of(n, 8, 9, 6).transpose(2, 0, 1))
    for pixels in HOLDINGS:
        settings = {"path": str(folder), "pixels": pixels, "window": "full"}
        train = opened(tmp_path / "data", [8, 9], channels=[5, 2], **settings)["train"]
        wanted = bands_of(0, 8, 9, 6)[..., [5, 2]] / 65535
        assert np.allclose(train.images[0], wanted, atol=1e-7)


def test_what_is_kept_of_the_values_may_be_damaged(tiffs, tmp_path):
    settings = {"path": str(tiffs), "channels": [0, 1], "pixels": "stored"}
    first = opened(tmp_path / "data", **settings)["train"]
    (path,) = (tmp_path / "data").glob("*.channels.json")
    for content in ("{", '{"dtype": "nothing"}', '{"dtype": "uint16", "low": [1], "high": [2]}'):
        path.write_text(content)
        assert opened(tmp_path / "data", **settings)["train"].fingerprint == first.fingerprint
        assert json.loads(path.read_text())["dtype"] == "uint16"


def test_files_that_are_cut_off_are_left_out_before_anything_is_decoded(tmp_path, monkeypatch):
    folder = tmp_path / "images"
    folder.mkdir()
    files = contents(4) | {"04.npy": npy(bands_of(0, 9, 14, 4, "u1"))}
    for name, content in files.items():
        (folder / name).write_bytes(content)
        (folder / f"cut_{name}").write_bytes(content[: len(content) - 30])
    settings = {"path": str(folder), "test_fraction": 0, "channels": [0], "max_bad": 0.6}
    train = opened(tmp_path, [9, 14], pixels="original", **settings)["train"]
    assert [name for name, _ in train.bad] == [f"cut_{name}" for name in files]
    assert len(train.images[:]) == 5


def test_a_narrow_a_constant_and_a_clipped_channel_are_said(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3)).astype("u1")
    values[..., 1], values[..., 2] = 7, values[..., 2] // 20
    np.save(tmp_path / "a.npy", values)
    settings = {"kind": "npy", "path": str(tmp_path / "a.npy"), "test_fraction": 0}
    channels = {"red": 0, "flat": 1, "low": 2}
    notices = opened(tmp_path / "s", 8, channels=channels, **settings)["train"].notices
    assert notices == [
        "channel 1 (flat): all stored pixels are equal; check data.channels",
        "channel 2 (low): nearly all stored pixels lie within a tenth of the range; check the "
        "files",
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"channels": [0, 5]}, r"data.channels=\[0, 5\]: 00.tif has 5 channels, numbered 0 to 4; "),
        ({"channels": {"nir": 9}}, r"data.channels=\{nir: 9\}: 00.tif has 5 channels"),
        ({}, r"set data.channels|a stack of 5 pages"),
        ({"channels": [0], "view_size": [8, 16]}, "data.view_size=8x16 exceeds data.image_size=12"),
    ],
)
@pytest.mark.parametrize("pixels", HOLDINGS)
def test_what_does_not_fit_is_said_in_a_line(tiffs, tmp_path, pixels, changes, words):
    with pytest.raises(UserError, match=words) as caught:
        opened(tmp_path, path=str(tiffs), pixels=pixels, **changes)
    assert "\n" not in str(caught.value)


def test_a_store_of_the_widest_type_is_planned_for(tiffs, tmp_path):
    settings = SOURCES.schema("folder")(path=str(tiffs), channels=[0, 1, 2], pixels="stored")
    plan = known_stores(open_source(settings), settings, 12, tmp_path)
    assert plan["train"].num_bytes == 11 * 12 * 12 * 3 * 4
    opened(tmp_path, path=str(tiffs), channels=[0, 1, 2], pixels="stored")
    (written,) = tmp_path.glob("folder-train-12-*/images.npy")
    assert written.stat().st_size - plan["train"].num_bytes == 128


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"channels": []}, "no channel is listed"),
        ({"channels": [1, 2, 1]}, "band 1 is repeated"),
        ({"channels": {"a": 1, "b": 1}}, "band 1 is repeated"),
        ({"channels": {" ": 1}}, "a name is empty"),
        ({"channels": [0, -1]}, "must be band numbers, from 0"),
        ({"channels": "abc"}, "must be band numbers, from 0"),
        ({"channels": {"a": "b"}}, "must be band numbers, from 0"),
        ({"image_size": [8]}, r"must be a side in pixels, or \[height, width\]"),
        ({"view_size": [8, 0]}, r"must be a side in pixels, or \[height, width\]"),
        ({"window": [1, 2, 3]}, "must be auto, full"),
        ({"channels": [0, 1], "window": [[0, 1]]}, "has 1 pairs for 2 channels"),
        ({"window": [[0, 1], [0, 2]]}, "data.channels, which is null"),
        ({"channels": [0, 1], "window": [[0, 1], [2, 2]]}, "low < high"),
        ({"channels": [0, 1], "display": [0, 1, 2]}, "2 is beyond the 2 channels"),
        ({"display": [0, 1, 2]}, "which is null"),
        ({"channels": [0, 1], "display": [0, 1]}, "display\n.*must be three positions in data.ch"),
        ({"channels": [0, 1], "display": [0, 1, 0, 1]}, "display\n.*must be three positions"),
        ({"channels": [0, 1], "display": []}, "display\n.*must be three positions"),
        ({"channels": [0, 1], "display": 1}, "display\n.*must be three positions"),
        ({"channels": [0, 1], "display": [0, 1, -1]}, "display\n.*must be three positions"),
        ({"image_size": 32, "view_size": [16, 33]}, "view_size: 16x33 exceeds"),
        ({"image_size": [8, 9000]}, "at most 8192"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, words):
    with pytest.raises(ValidationError, match=words):
        StoreSettings(**settings)


def test_at_most_some_images_are_read_for_the_channels(tiffs, tmp_path, monkeypatch):
    monkeypatch.setattr(channel_scale, "TRIED", 3)
    tried = []
    read = originals.Holding.read
    monkeypatch.setattr(originals.Holding, "read", lambda *a: tried.append(a) or read(*a))
    with pytest.raises(UserError, match=r"00\.tif has 5 channels"):
        opened(tmp_path, path=str(tiffs), channels=[6])
    assert not tried


@pytest.mark.parametrize(
    ("form", "count", "positions"),
    [
        ({"channels": [4, 2, 0, 1]}, 4, (0, 1, 2)),
        ({"channels": [4, 2, 0, 1], "display": [3, 3, 1]}, 4, (3, 3, 1)),
        ({"channels": {"nir": 0, "blue": 1, "green": 2, "red": 3}}, 4, (3, 2, 1)),
        ({"channels": [0, 1]}, 2, (0, 0, 0)),
        ({"channels": [7]}, 1, (0, 0, 0)),
    ],
)
def test_three_channels_are_displayed_around_their_means(form, count, positions):
    from ssdistill.data.displaying import displayed

    images = np.random.default_rng(0).random((3, 4, 5, count)).astype("f4")
    mean, std = images.mean((0, 1, 2)), images.std((0, 1, 2)) / 4
    shown = displayed(images, StoreSettings(**form).form, mean, std)
    assert shown.dtype == np.uint8 and shown.shape == (3, 4, 5, 3)
    for color, k in enumerate(positions):
        wanted = ((images[..., k] - mean[k]) / (4 * std[k]) + 0.5).clip(0, 1) * 255
        assert np.abs(shown[..., color] - wanted).max() <= 0.51
    as_bytes = (images * 255).astype("u1")
    assert np.abs(displayed(as_bytes, StoreSettings(**form).form, mean, std).astype(int)
                  - shown).max() <= 6  # fmt: skip
    rgb = as_bytes[..., [0] * 3]
    assert displayed(rgb, StoreSettings().form, mean[[0] * 3], std[[0] * 3]) is rgb


@pytest.mark.parametrize(
    ("fill", "dtype", "words"),
    [
        (-9999, "i2", "channel 1: -9999 is far from all other values, 200 to 1999"),
        (-3.4e38, "f4", "channel 1: -3.4e+38 is far from all other values, 200 to 1999"),
        (65535, "u2", "channel 1: 65535 is far from all other values, 200 to 1999"),
        (3000, "u2", None),
    ],
)
def test_values_for_missing_pixels_are_named(tmp_path, caplog, fill, dtype, words):
    (tmp_path / "images").mkdir()
    for n in range(8):
        values = bands_of(n, channels=2, dtype=dtype)
        values[0, :2, 1] = 200, 1999
        values[:3, 5:, 1] = fill
        np.save(tmp_path / "images" / f"{n}.npy", values)
    opened(tmp_path, path=str(tmp_path / "images"), channels=[0, 1])
    named = [line for line in caplog.messages if "is far from" in line]
    assert (len(named) == 1 and words in named[0]) if words else not named


def test_black_and_white_are_displayed_as_such():
    from ssdistill.data.displaying import displayed

    images = np.array([0, 0.5, 1, 0, 0.3, 1], dtype="f4").reshape(1, 2, 3, 1)
    shown = displayed(images, StoreSettings(channels=[0]).form, [0.4], [0.4])
    assert shown[..., 0].ravel().tolist() == [0, 128, 255, 0, 77, 255]


def test_statistics_of_floats_are_summed_in_64_bits():
    from ssdistill.data.moments import Moments

    moments = Moments(2, np.float32)
    images = np.random.default_rng(0).random((50, 40, 40, 2)).astype("f4") * 1e-4 + 0.7
    for start in range(0, 50, 7):
        moments.add(images[start : start + 7])
    mean, std = moments.mean_std()
    assert mean == pytest.approx(images.mean((0, 1, 2), dtype="f8"), abs=1e-12)
    assert std == pytest.approx(images.std((0, 1, 2), dtype="f8"), rel=1e-5)


def test_pieces_of_a_store_hold_as_much_memory_as_before(tiffs, tmp_path, monkeypatch):
    added = []
    add = store_writer.Moments.add
    monkeypatch.setattr(
        store_writer.Moments, "add", lambda self, part: added.append(len(part)) or add(self, part)
    )
    monkeypatch.setattr(store_writer, "CHUNK_BYTES", 9 * 12 * 12 * 2 * 4)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    opened(tmp_path, path=str(tiffs), channels=[0, 1], pixels="stored", test_fraction=0)
    assert added == [9, 3]


def contents(count=10):
    """Encoded files with four bands, by name."""
    files = {}
    for n in range(count):
        file = io.BytesIO()
        values = np.random.default_rng(n).integers(0, 256, (9, 14, 4)).astype("u1")
        if n % 2:
            Image.fromarray(values).save(file, "PNG")
        else:
            by_pixel = {"photometric": "minisblack", "planarconfig": "contig"}
            tifffile.imwrite(file, values, **by_pixel)
        files[f"{n:02}.{'png' if n % 2 else 'tif'}"] = file.getvalue()
    return files


def as_list(folder: Path, files: dict[str, bytes]):
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / "all.txt").write_text("".join(f"{name}\n" for name in files))
    return {"kind": "list", "path": str(folder / "all.txt")}


def as_tar(folder: Path, files: dict[str, bytes]):
    with tarfile.open(folder / "a.tar", "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return {"kind": "tar", "path": str(folder / "a.tar")}


def as_parquet(folder: Path, files: dict[str, bytes]):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table({"image": list(files.values())}), folder / "a.parquet")
    return {"kind": "parquet", "path": str(folder / "a.parquet")}


def as_arrow(folder: Path, files: dict[str, bytes]):
    arrow = pytest.importorskip("pyarrow")
    table = arrow.table({"image": list(files.values())})
    path = str(folder / "a.arrow")
    with arrow.OSFile(path, "wb") as file, arrow.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    return {"kind": "arrow", "path": str(folder / "a.arrow")}


def as_hdf5(folder: Path, files: dict[str, bytes]):
    h5py = pytest.importorskip("h5py")
    with h5py.File(folder / "a.h5", "w") as file:
        rows = file.create_dataset("images", (len(files),), h5py.vlen_dtype("u1"))
        for row, content in enumerate(files.values()):
            rows[row] = np.frombuffer(content, "u1")
    return {"kind": "hdf5", "path": str(folder / "a.h5")}


def as_lmdb(folder: Path, files: dict[str, bytes]):
    lmdb = pytest.importorskip("lmdb")
    with lmdb.open(str(folder / "lmdb")) as environment, environment.begin(write=True) as writing:
        for name, content in files.items():
            writing.put(name.encode(), content)
    return {"kind": "lmdb", "path": str(folder / "lmdb")}


@pytest.mark.parametrize("pixels", HOLDINGS)
@pytest.mark.parametrize("made", [as_list, as_tar, as_parquet, as_arrow, as_hdf5, as_lmdb])
def test_every_container_of_encoded_images_has_all_their_bands(tmp_path, made, pixels):
    settings = made(tmp_path, contents()) | {"test_fraction": 0, "channels": [3, 0, 1]}
    train = opened(tmp_path / "data", [9, 14], pixels=pixels, **settings)["train"]
    for n in range(10):
        values = np.random.default_rng(n).integers(0, 256, (9, 14, 4)).astype("u1")
        assert np.array_equal(train.images[n], values[..., [3, 0, 1]])


def test_gray_and_color_that_are_in_memory_have_their_own_channels(tmp_path):
    gray = opened(tmp_path, 8, kind="digits", channels=[0], pixels="stored")["train"]
    assert gray.images.shape == (1297, 8, 8, 1) and gray.images.dtype == np.uint8
    with pytest.raises(UserError, match="000000 has 1 channel, numbered 0; choose"):
        opened(tmp_path, 8, kind="digits", channels=[0, 1])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty file"),
        (b"<html>", "Pillow cannot read"),
        (b"\x93NUMPY\1\0", "not a .npy array"),
        (npy(np.zeros((4, 4, 4))), "no axis is clearly that of the channels"),
        (npy(np.zeros((4, 5, 3, 2))), "an array of 4 x 5 x 3 x 2"),
        (npy(np.full((5, 4), np.nan)), "NaN or infinite pixels"),
        (npy(np.array([[{}]])), "save real numbers"),
        (npy(np.zeros((9, 9)))[:-1], "does not match the header"),
        (npy(np.zeros((1, 1), "u1")).replace(b"(1, 1)", b"(8,9999999)"), "header|max_pixels"),
        (b"II*\0" + b"\xff" * 200, "damaged|pages"),
        (b"\x89PNG\r\n\x1a\n" + b"x" * 40, "Pillow cannot read|damaged|Truncated"),
    ],
)
def test_what_is_no_image_is_bad_and_nothing_is_unpickled(content, words):
    with pytest.raises(BadImage, match=words) as caught:
        read_channels(content)
    assert "\n" not in caught.value.reason


def test_more_pixels_than_allowed_are_not_decoded():
    with pixel_limit(20):
        for content in (npy(np.zeros((5, 5), "u1")), *contents(2).values()):
            with pytest.raises(BadImage, match=r"raise data\.max_pixels"):
                read_channels(content)
            with pytest.raises((BadImage, Image.DecompressionBombError)):
                ChannelHeader(io.BytesIO(content), b"")
