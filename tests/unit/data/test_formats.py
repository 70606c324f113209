"""Formats that other libraries read: with them, and what is said without."""

import io
import struct
import sys

import numpy as np
import pytest
from PIL import Image

from ssdistill.data import formats
from ssdistill.data.bad_image import BadImage
from ssdistill.data.decode import pixel_limit, read_pixels
from ssdistill.data.jxl_size import jxl_size
from ssdistill.data.sources.folder import Folder

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)
JXL = b"\xff\x0a" + bytes(100)


@pytest.fixture
def without(monkeypatch):
    """No library is installed."""
    for module in ("pillow_heif", "pillow_jxl"):
        monkeypatch.setitem(sys.modules, module, None)
    for name in ("HEIF", "JXL"):
        monkeypatch.delitem(Image.OPEN, name, raising=False)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (HEIC, r"^HEIC requires pillow-heif: pip install 'ssdistill\[heif\]'$"),
        (JXL, r"^JPEG XL requires pillow-jxl-plugin: pip install 'ssdistill\[jxl\]'$"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(90), r"^JPEG XL requires"),
    ],
)
def test_what_requires_a_library_says_which(without, content, reason):
    with pytest.raises(BadImage, match=reason):
        read_pixels(content)


def test_an_avif_without_its_decoder_says_what_to_install(monkeypatch):
    monkeypatch.setattr(formats, "FORMATS", ("PNG",))
    monkeypatch.delitem(Image.OPEN, "AVIF", raising=False)
    with pytest.raises(BadImage, match=r"^AVIF requires Pillow 11.3 or later"):
        read_pixels(b"\0\0\0\x18ftypavif\0\0\0\0mif1avif" + bytes(100))


def test_a_folder_counts_what_no_library_reads(without, tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    for name in ("c.heic", "d.HEIC", "e.jxl"):
        (tmp_path / name).write_bytes(HEIC)
    folder = Folder(path=str(tmp_path), test_fraction=0)
    assert len(folder.split("train")) == 2
    said = " ".join(folder.warnings(labels=False))
    assert "skipped 2 .heic files; HEIC requires pillow-heif: pip install" in said
    assert "skipped 1 .jxl files; JPEG XL requires" in said


def test_with_a_library_its_files_are_images(monkeypatch, tmp_path):
    monkeypatch.setitem(Image.OPEN, "HEIF", (None, None))
    for name in ("a.png", "c.heic"):
        (tmp_path / name).write_bytes(b"x")
    assert len(Folder(path=str(tmp_path), test_fraction=0).split("train")) == 2


@pytest.mark.parametrize(
    ("bits", "size"),
    [
        ("1" + "01000" + "000" + "10000", (16, 24)),  # a multiple of 8, lowest bits first
        ("1" + "01000" + "100", (24, 24)),
        ("0" + "00" + "111111000" + "111", (128, 64)),
        ("0" + "11" + "1" * 30 + "000" + "11" + "1" * 30, (1 << 30, 1 << 30)),
    ],
)
def test_the_size_of_a_jpeg_xl_is_read_without_decoding(bits, size):
    number = int(bits[::-1], 2)
    code = b"\xff\x0a" + number.to_bytes(12, "little") + bytes(20)
    assert jxl_size(io.BytesIO(code)) == size
    box = struct.pack(">I4s", 12, b"JXL ") + b"\r\n\x87\n" + struct.pack(">I4sI", 12, b"ftyp", 0)
    whole = box + struct.pack(">I4s", 8 + len(code), b"jxlc") + code
    assert jxl_size(io.BytesIO(whole)) == size
    parts = box + struct.pack(">I4sI", 12 + len(code), b"jxlp", 0) + code
    assert jxl_size(io.BytesIO(parts)) == size
    for length in range(len(whole)):
        assert jxl_size(io.BytesIO(whole[:length])) in (None, size)


def test_a_jpeg_xl_of_too_many_pixels_is_not_opened(monkeypatch):
    def opened(*_):
        raise AssertionError("decoded")

    monkeypatch.setitem(Image.OPEN, "JXL", (opened, None))
    huge = b"\xff\x0a" + int(("0" + "11" + "1" * 30 + "100")[::-1], 2).to_bytes(12, "little")
    with pixel_limit(1000), pytest.raises(BadImage, match=r"more than 1000 pixels; raise data.max"):
        read_pixels(huge + bytes(20))


@pytest.mark.parametrize(("module", "form"), [("pillow_heif", "HEIF"), ("pillow_jxl", "JXL")])
def test_real_files_are_read(module, form):
    library = pytest.importorskip(module)
    if module == "pillow_heif":
        library.register_heif_opener()
    pixels = np.repeat(np.repeat(np.arange(0, 240, 40, dtype=np.uint8)[:, None], 16, 0), 64, 1)
    file = io.BytesIO()
    Image.fromarray(pixels).convert("RGB").save(file, form, quality=95)
    read = read_pixels(file.getvalue())
    np.testing.assert_allclose(read, np.repeat(pixels[..., None], 3, 2), atol=6)
    with pytest.raises(BadImage):
        read_pixels(file.getvalue()[: len(file.getvalue()) // 2])
