"""TIFF and DICOM with all their bands."""

import io
import os
import struct
import zlib

import numpy as np
import pydicom
import pytest
import tifffile
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RLELossless

from ssdistill.data.bad_image import BadImage
from ssdistill.data.decode import read_pixels
from ssdistill.data.frames import num_frames
from ssdistill.data.multiband import read_bands
from ssdistill.errors import UserError

RNG = np.random.default_rng(0)


def tiff(array, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, array, **options)
    return file.getvalue()


def values(dtype, *shape):
    if np.dtype(dtype).kind == "f":
        return RNG.normal(size=shape).astype(dtype)
    info = np.iinfo(dtype)
    return RNG.integers(info.min, info.max, shape, dtype=dtype, endpoint=True)


# TIFF


@pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "u4", "f2", "f4", "f8", ">u2"])
@pytest.mark.parametrize("bands", [1, 2, 5, 13])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_samples_are_bands_of_their_own_type(dtype, bands, planar):
    expected = values(np.dtype(dtype).newbyteorder("="), 9, 7, bands)
    written = expected if planar == "contig" else expected.transpose(2, 0, 1)
    written = written[..., 0] if bands == 1 and planar == "contig" else written
    data = tiff(
        written,
        photometric="minisblack",
        planarconfig=planar if bands > 1 else None,
        byteorder=">" if ">" in dtype else "<",
        metadata=None,
    )
    found = read_bands(data)
    assert found.dtype == expected.dtype.newbyteorder("=") or found.dtype == np.dtype(dtype)
    assert np.array_equal(found, expected)


def test_pages_are_bands():
    expected = values("u2", 8, 6, 13)
    for options in ({"metadata": None}, {}, {"ome": True}, {"imagej": True}):
        data = tiff(expected.transpose(2, 0, 1), photometric="minisblack", **options)
        assert np.array_equal(read_bands(data), expected), options


def test_sixteen_bits_of_color_are_kept():
    expected = values("u2", 9, 7, 3)
    found = read_bands(tiff(expected, photometric="rgb"))
    assert found.dtype == np.uint16 and np.array_equal(found, expected)


@pytest.mark.parametrize("options", [{"tile": (16, 16)}, {"rowsperstrip": 3}, {"bigtiff": True}])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_tiles_strips_and_compression(options, compression):
    expected = values("u2", 40, 33, 5)
    for predictor in (False, True) if compression else (False,):
        data = tiff(
            expected,
            photometric="minisblack",
            planarconfig="contig",
            compression=compression,
            predictor=predictor,
            **options,
        )
        try:
            found = read_bands(data)
        except BadImage as error:
            assert predictor and "imagecodecs" in error.reason
            continue
        assert np.array_equal(found, expected)


def test_smaller_copies_of_the_first_page_are_no_bands():
    expected, file = values("u1", 64, 64), io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(expected, photometric="minisblack")
        writer.write(expected[::2, ::2], photometric="minisblack", subfiletype=1)
        writer.write(expected[::4, ::4], photometric="minisblack")
        writer.write(expected, photometric="minisblack", subfiletype=1)
    assert np.array_equal(read_bands(file.getvalue())[..., 0], expected)


@pytest.mark.parametrize("photometric", ["mask", "minisblack"])
def test_masks_of_transparency_are_no_bands(photometric):
    """GDAL writes them after the image, and copies of both at smaller sizes."""
    expected, mask, file = values("u1", 64, 64, 3), np.ones((64, 64), bool), io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(expected, photometric="rgb")
        writer.write(mask, photometric=photometric, subfiletype=4)
        writer.write(expected[::2, ::2], photometric="rgb", subfiletype=1)
        writer.write(mask[::2, ::2], photometric=photometric, subfiletype=5)
    data = file.getvalue()
    assert np.array_equal(read_bands(data), expected)
    assert np.array_equal(read_pixels(data), expected)
    assert num_frames(io.BytesIO(data)) == 1


@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_white_is_above_black(dtype):
    expected = values(dtype, 8, 8)
    data = tiff(np.iinfo(dtype).max - expected, photometric="miniswhite")
    assert np.array_equal(read_bands(data)[..., 0], expected)


def test_a_path_is_read_as_bytes_are(tmp_path):
    expected = values("u2", 6, 5, 4)
    (tmp_path / "a.tif").write_bytes(tiff(expected, photometric="minisblack", planarconfig=1))
    assert np.array_equal(read_bands(tmp_path / "a.tif"), expected)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadImage, match="a named pipe"):
        read_bands(tmp_path / "pipe")


def lzw():
    file = io.BytesIO()
    Image.fromarray(values("u1", 8, 8)).save(file, "TIFF", compression="tiff_lzw")
    return file.getvalue()


def two_sizes():
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(values("u1", 8, 8))
        writer.write(values("u1", 9, 8))
    return file.getvalue()


def claims(width, height, samples=1, data=b"x" * 64, compression=1, bits=8):
    """A TIFF of one strip that claims a size."""
    tags = [(256, 4, width), (257, 4, height), (258, 3, bits), (259, 3, compression)]
    tags += [(262, 3, 1), (273, 4, 8), (277, 3, samples), (278, 4, height), (279, 4, len(data))]
    ifd = struct.pack("<H", len(tags))
    for number, kind, value in tags:
        ifd += struct.pack("<HHII", number, kind, 1, value)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + ifd + b"\0\0\0\0"


def endless():
    data = claims(8, 8)
    return data[:-4] + data[4:8]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty file"),
        (b"\x89PNG", "neither TIFF nor DICOM"),
        (b"II*\0", "damaged|pages"),
        (b"II*\0\xff\xff\xff\x7f", "damaged|pages"),
        (tiff(values("u1", 40, 40))[:-500], "damaged|truncated"),
        (tiff(np.full((4, 4), np.nan, "f4")), "NaN or infinite"),
        (tiff(np.zeros((4, 4), "c8")), "pixel type complex64"),
        (lzw(), "LZW compression requires imagecodecs"),
        (two_sizes(), "pages differ in size or type"),
        (claims(2**20, 2**20), "raise data.max_pixels"),
        (claims(10**4, 10**3), "truncated|damaged"),
        (claims(8, 8, samples=60_000), "bands"),
        (claims(0, 8), "pixels of|damaged|volume"),
        (claims(8, 8, compression=34676), "unsupported TIFF compression 34676"),
        (claims(9000, 9000, data=zlib.compress(b"\0" * 9), compression=8), "truncated"),
        (endless(), "pages|damaged|sizes"),
    ],
)
def test_what_a_tiff_could_try_is_refused_with_a_reason(data, words, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 89_478_485)
    with pytest.raises(BadImage) as caught:
        read_bands(data)
    assert any(word in caught.value.reason for word in words.split("|")), caught.value.reason
    assert "\n" not in caught.value.reason


def test_a_part_that_unpacks_to_more_than_its_pixels_is_not_unpacked(monkeypatch):
    monkeypatch.setattr("ssdistill.data.multiband.SAFE_BYTES", 1 << 20)
    bomb = claims(64, 64, data=zlib.compress(b"\0" * (50 << 20)), compression=8)
    with pytest.raises(BadImage, match="decompresses to more"):
        read_bands(bomb)
    whole = zlib.compress(RNG.bytes(64 * 64))
    assert read_bands(claims(64, 64, data=whole, compression=8)).shape == (64, 64, 1)


def test_many_pages_are_refused_before_they_are_read(monkeypatch):
    monkeypatch.setattr("ssdistill.data.multiband.MOST_BANDS", 5)
    data = tiff(values("u1", 6, 8, 8), photometric="minisblack", metadata=None)
    with pytest.raises(BadImage, match="more than 5 pages"):
        read_bands(data)


def test_metadata_that_names_other_files_reads_none(tmp_path):
    (tmp_path / "b.tif").write_bytes(tiff(values("u1", 8, 8)))
    xml = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0">'
        '<Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="8" SizeY="8" SizeC="2"'
        ' SizeZ="1" SizeT="1"><TiffData IFD="0" FirstC="0"><UUID FileName="a.tif">urn:uuid:a'
        '</UUID></TiffData><TiffData IFD="0" FirstC="1"><UUID FileName="b.tif">urn:uuid:b</UUID>'
        "</TiffData></Pixels></Image></OME>"
    )
    (tmp_path / "a.tif").write_bytes(tiff(values("u1", 8, 8), description=xml, metadata=None))
    assert read_bands(tmp_path / "a.tif").shape == (8, 8, 1)


def test_damage_anywhere_is_a_bad_image_or_another_one():
    whole = tiff(values("u2", 20, 20, 5), photometric="minisblack", compression="zlib")
    for place in range(0, len(whole), 37):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        try:
            assert read_bands(bytes(damaged)).ndim == 3
        except BadImage as error:
            assert "\n" not in error.reason


@pytest.mark.parametrize(("module", "extra"), [("tifffile", "tiff"), ("pydicom", "dicom")])
def test_a_library_that_is_missing_is_named_with_its_extra(monkeypatch, module, extra):
    monkeypatch.setattr(
        "ssdistill.data.handles.find_spec", lambda name: None if name == module else 1
    )
    data = tiff(values("u1", 4, 4)) if extra == "tiff" else dicom(values("u2", 4, 4))
    with pytest.raises(UserError, match=rf"requires {module}: pip install 'ssdistill\[{extra}\]'"):
        read_bands(data)


# DICOM


def dicom(array, syntax=ExplicitVRLittleEndian, frames=1, **facts):
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, "1.2.3"
    samples = array.shape[-1] if array.ndim > 2 and frames == 1 else 1
    data.Rows, data.Columns = array.shape[1:3] if frames > 1 else array.shape[:2]
    data.SamplesPerPixel = samples
    if samples > 1:
        data.PlanarConfiguration = 0
    if frames > 1:
        data.NumberOfFrames = frames
    data.PhotometricInterpretation = "RGB" if samples == 3 else "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 8 * array.dtype.itemsize
    data.HighBit = data.BitsStored - 1
    data.PixelRepresentation = int(array.dtype.kind == "i")
    data.PixelData = array.tobytes()
    for name, value in facts.items():
        setattr(data, name, value)
    if syntax == RLELossless:
        data.compress(RLELossless)
    file = io.BytesIO()
    pydicom.dcmwrite(file, data, enforce_file_format=True)
    return file.getvalue()


@pytest.mark.parametrize("dtype", ["u1", "u2", "i2"])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless])
def test_stored_values_come_back_in_their_type(dtype, syntax):
    expected = values(dtype, 10, 6)
    found = read_bands(dicom(expected, syntax))
    assert found.dtype == expected.dtype and np.array_equal(found[..., 0], expected)


def test_frames_and_colors_are_bands():
    frames = values("u2", 4, 10, 6)
    assert np.array_equal(read_bands(dicom(frames, frames=4)), frames.transpose(1, 2, 0))
    color = values("u1", 10, 6, 3)
    assert np.array_equal(read_bands(dicom(color)), color)


def test_values_are_rescaled():
    raw = values("u2", 8, 8)
    found = read_bands(dicom(raw, RescaleSlope="2", RescaleIntercept="-1024"))
    assert found.dtype == np.float32
    assert np.allclose(found[..., 0], raw.astype(np.float32) * 2 - 1024)


def test_a_window_is_that_of_the_standard():
    # PS3.3 C.11.2.1.2.1: c=2048, w=4096 over 0 to 1: (x - (c - 0.5)) / (w - 1) + 0.5.
    raw = np.array([[0, 1024, 2048, 4095, 65535]], "u2")
    found = read_bands(dicom(raw, WindowCenter="2048", WindowWidth="4096"))[0, :, 0]
    assert np.allclose(found, [0, (1024 - 2047.5) / 4095 + 0.5, 0.5 / 4095 + 0.5, 1, 1], atol=1e-6)
    exact = dicom(raw, WindowCenter="2048", WindowWidth="4096", VOILUTFunction="LINEAR_EXACT")
    assert np.allclose(read_bands(exact)[0, :3, 0], [0, 0.25, 0.5], atol=1e-6)
    sigmoid = dicom(raw, WindowCenter="2048", WindowWidth="4096", VOILUTFunction="SIGMOID")
    expected = 1 / (1 + np.exp(-4 * (raw[0].astype(float) - 2048) / 4096))
    assert np.allclose(read_bands(sigmoid)[0, :, 0], expected, atol=1e-6)
    # Of several windows the first.
    several = dicom(raw, WindowCenter=["2048", "9"], WindowWidth=["4096", "2"])
    assert np.array_equal(read_bands(several)[0, :, 0], found)


def test_a_window_is_in_rescaled_units():
    raw = np.array([[0, 1024, 2048]], "u2")
    data = dicom(
        raw, RescaleSlope="1", RescaleIntercept="-1024", WindowCenter="0.5", WindowWidth="2001"
    )
    assert np.allclose(read_bands(data)[0, :, 0], [0, 0.5, 1], atol=1e-6)


def test_monochrome1_is_inverted():
    raw = values("u2", 8, 8) >> 4
    plain = read_bands(
        dicom(raw, PhotometricInterpretation="MONOCHROME1", BitsStored=12, HighBit=11)
    )
    assert plain.dtype == np.uint16 and np.array_equal(plain[..., 0], 4095 - raw)
    signed = values("i2", 8, 8)
    found = read_bands(dicom(signed, PhotometricInterpretation="MONOCHROME1"))
    assert np.array_equal(found[..., 0], -1 - signed)
    shown = {"WindowCenter": "2048", "WindowWidth": "4096"}
    first = read_bands(dicom(raw, PhotometricInterpretation="MONOCHROME1", **shown))
    assert np.allclose(first, 1 - read_bands(dicom(raw, **shown)), atol=1e-6)


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"Rows": 65535, "Columns": 65535}, "raise data.max_pixels"),
        ({"NumberOfFrames": 10**9}, "bands"),
        ({"Rows": 0}, "pixels of"),
        ({"Rows": 4000}, "damaged|expected|length"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "PhotometricInterpretation PALETTE COLOR"),
        ({"BitsAllocated": 7}, "BitsAllocated=7"),
        ({"BitsStored": 99}, "bits|Bits"),
        ({"WindowCenter": "5", "WindowWidth": "0"}, "WindowWidth=0"),
        (
            {"WindowCenter": "5", "WindowWidth": "9", "VOILUTFunction": "OTHER"},
            "unknown VOILUTFunction",
        ),
    ],
)
def test_what_a_dicom_could_try_is_refused_with_a_reason(facts, words, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 89_478_485)
    with pytest.raises(BadImage) as caught:
        read_bands(dicom(values("u2", 8, 8), **facts))
    assert any(word in caught.value.reason for word in words.split("|")), caught.value.reason


def test_a_deflated_data_set_is_not_unpacked():
    whole = dicom(values("u2", 8, 8))
    named = whole.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99")
    length = whole.index(b"1.2.840.10008.1.2.1\0") - 2
    named = named[:length] + struct.pack("<H", 22) + named[length + 2 :]
    with pytest.raises(BadImage, match="deflated"):
        read_bands(named)


def test_a_dicom_cut_anywhere_is_a_bad_image():
    whole = dicom(values("u2", 8, 8))
    for length in range(132, len(whole) - 1, 11):
        with pytest.raises(BadImage):
            read_bands(whole[:length])
