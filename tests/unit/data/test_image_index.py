"""The index of originals: what is read of an image, and when it is read again."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import smooth_noise, write_images
from PIL import Image

from ssdistill.data import retry
from ssdistill.data.decode import read_pixels
from ssdistill.data.geometry import Boxes
from ssdistill.data.header import Header
from ssdistill.data.image_index import ImageIndex
from ssdistill.data.opening import open_originals
from ssdistill.data.settings import StoreSettings
from ssdistill.data.sources.folder import Folder

ORIGINAL = StoreSettings(pixels="original")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images")


def test_only_what_changed_is_read_again(folder, tmp_path):
    def index(**more) -> ImageIndex:
        raw = Folder(path=str(folder), test_fraction=0).split("train")
        return ImageIndex(raw, tmp_path / "index", **more)

    first = index()
    assert (first.num_read, first.records_N.itemsize) == (8, 24)
    assert index().num_read == 0
    Image.fromarray(smooth_noise(99, 20, 30)).save(folder / "3.png")
    Image.fromarray(smooth_noise(98, 21, 30)).save(folder / "3b.png")
    second = index()
    assert (second.num_read, len(second)) == (2, 9)
    assert [s.tolist() for s in second.sizes(np.array([3, 4, 8]))] == [
        [20, 21, 70],
        [30, 30, 30],
    ]
    (folder / "0.png").unlink()
    (folder / "1.png").write_bytes(b"nothing")
    third = index()
    assert (third.num_read, len(third), list(third.reasons)) == (1, 8, [0])
    again = index()
    assert (again.num_read, again.reasons) == (0, third.reasons)
    assert index(verify=True).num_read == 8


@pytest.mark.parametrize("file", ["records.npy", "index.json"])
def test_a_damaged_index_is_made_anew(folder, tmp_path, file):
    raw = Folder(path=str(folder), test_fraction=0).split("train")
    first = ImageIndex(raw, tmp_path / "index").content()
    (tmp_path / "index" / file).write_bytes(b"\x93NUMPY{")
    again = ImageIndex(raw, tmp_path / "index")
    assert (again.num_read, again.content()) == (8, first)


def test_sizes_are_those_of_the_upright_image(tmp_path):
    image = Image.fromarray(smooth_noise(0, 20, 50))
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "in").mkdir()
    image.save(tmp_path / "in" / "a.jpg", exif=exif)
    image.save(tmp_path / "in" / "b.jpg")
    raw = Folder(path=str(tmp_path / "in"), test_fraction=0).split("train")
    height_B, width_B = ImageIndex(raw, tmp_path / "index").sizes(np.arange(2))
    assert (height_B.tolist(), width_B.tolist()) == ([50, 20], [20, 50])


def test_images_of_many_bits_are_marked(tmp_path):
    (tmp_path / "in").mkdir()
    Image.fromarray(smooth_noise(0, 20, 50)).save(tmp_path / "in" / "a.png")
    deep = np.arange(600, dtype=np.uint16).reshape(20, 30)
    Image.fromarray(deep).save(tmp_path / "in" / "b.png")
    source = Folder(path=str(tmp_path / "in"), test_fraction=0)
    originals = open_originals(source, "train", ORIGINAL, 20, tmp_path / "data")
    assert originals.index.deep_rows == [1]
    assert originals.sizes(np.array([1]))[1].tolist() == [30]
    assert originals.window == (0.0, 599.0)
    crops_BCHW = originals.cut(np.array([1]), [Boxes(*torch.tensor([[0], [0], [20], [30]]))], [30])[
        0
    ]
    assert crops_BCHW.amax() == 255 and crops_BCHW.amin() == 0


@pytest.mark.parametrize("file", ["records.npy", "index.json"])
def test_a_changed_number_is_found(folder, tmp_path, file):
    (folder / "5.png").write_bytes(b"no image")
    raw = Folder(path=str(folder), test_fraction=0).split("train")
    first = ImageIndex(raw, tmp_path / "index").content()
    path = tmp_path / "index" / file
    content = path.read_bytes()
    if file == "records.npy":
        path.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    else:
        path.write_bytes(content.replace(b'"5": ', b'"4": '))
    again = ImageIndex(raw, tmp_path / "index")
    assert (again.num_read, again.content(), list(again.reasons)) == (8, first, [5])


def test_changed_statistics_are_measured_again(folder, tmp_path):
    source = Folder(path=str(folder), test_fraction=0)
    first = open_originals(source, "train", ORIGINAL, 16, tmp_path / "data")
    (path,) = (tmp_path / "data").glob("*/statistics-*.json")
    mean = f"{first.mean[0]}"
    assert mean in path.read_text()
    path.write_text(path.read_text().replace(mean, f"{first.mean[0] / 2}"))
    again = open_originals(source, "train", ORIGINAL, 16, tmp_path / "data")
    assert again.mean == first.mean


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_turned_images_are_indexed_and_read_upright(form, dtype):
    """Of a TIFF, Pillow exchanges the sides itself."""
    pixels = np.zeros((18, 24), dtype)
    pixels[:6, :8] = np.iinfo(dtype).max
    if dtype == np.uint16 and form not in ("PNG", "TIFF"):
        return
    for value in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = value
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, form, exif=exif)
        file.seek(0)
        header, read = Header(file, b""), read_pixels(file.getvalue())
        assert (header.height, header.width) == read.shape[:2]
        assert read.shape[:2] == ((24, 18) if value > 4 else (18, 24))
        corner = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0)}
        corner |= {5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}
        assert read[corner[value]].max() > 0.9 * np.iinfo(dtype).max


def test_a_link_that_leads_to_itself_is_not_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(retry.time, "sleep", lambda _: pytest.fail("it waits"))
    (tmp_path / "a.png").symlink_to("a.png")
    Image.new("L", (4, 4)).save(tmp_path / "b.png")
    split = Folder(path=str(tmp_path), test_fraction=0).split("train")
    index = ImageIndex(split.encoded(), tmp_path / "index")
    assert index.reasons == {0: "Too many levels of symbolic links"}
