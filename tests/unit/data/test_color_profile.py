"""Color profiles: what is not sRGB is converted, or said."""

import io
import struct

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from ssdistill.data.cutting import decode
from ssdistill.data.decode import read_pixels, square
from ssdistill.data.opening import open_source, open_stores
from ssdistill.settings.registry import SOURCES

D50 = (0.9642, 1.0, 0.8249)
# Columns: red, green, blue in XYZ of D50.
P3 = ((0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841))
ADOBE = ((0.6097, 0.3111, 0.0195), (0.2053, 0.6257, 0.0609), (0.1492, 0.0632, 0.7446))
SRGB = ((0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7142))


def fixed(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def xyz(values) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(map(fixed, values))


def gamma(value: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(value * 256))


def profile(kind: bytes, space: bytes, pcs: bytes, tags: dict[bytes, bytes]) -> bytes:
    text = b"made by hand\0"
    tags = {b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(79)} | tags
    table, body = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        table += name + struct.pack(">II", start + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    size = start + len(body)
    head = struct.pack(">I4sI4s4s4s", size, b"lcms", 0x02400000, kind, space, pcs)
    head = head.ljust(36, b"\0") + b"acsp"
    head = head.ljust(68, b"\0") + b"".join(map(fixed, D50))
    return head.ljust(128, b"\0") + table + body


def rgb_profile(columns, exponent: float) -> bytes:
    tags = {b"wtpt": xyz(D50)}
    for letter, column in zip("rgb", columns, strict=True):
        tags[f"{letter}XYZ".encode()] = xyz(column)
        tags[f"{letter}TRC".encode()] = gamma(exponent)
    return profile(b"mntr", b"RGB ", b"XYZ ", tags)


def gray_profile(exponent: float) -> bytes:
    return profile(b"mntr", b"GRAY", b"XYZ ", {b"wtpt": xyz(D50), b"kTRC": gamma(exponent)})


def ink_profile() -> bytes:
    """Lightness alone: no ink 100, cyan alone 50, anything with black 0, else 25."""
    light = []
    for inks in np.ndindex(2, 2, 2, 2):
        light.append({(0, 0, 0, 0): 255, (1, 0, 0, 0): 128}.get(inks, 0 if inks[3] else 64))
    ramp = bytes(range(256))
    lut = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0])
    lut += b"".join(map(fixed, (1, 0, 0, 0, 1, 0, 0, 0, 1))) + ramp * 4
    lut += b"".join(bytes([level, 128, 128]) for level in light) + ramp * 3
    return profile(b"prtr", b"CMYK", b"Lab ", {b"wtpt": xyz(D50), b"A2B0": lut})


def encoded(linear):
    linear = np.clip(linear, 0, 1)
    return 255 * np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)


def expected_of(pixels, columns, exponent):
    """Colors in sRGB, by the definition of both spaces."""
    to_linear = np.linalg.inv(np.array(SRGB).T) @ np.array(columns).T
    return encoded((pixels / 255.0) ** exponent @ to_linear.T)


def file_of(image: Image.Image, form: str, **how) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **how)
    return file.getvalue()


COLORS = np.array(
    [[[200, 90, 60], [90, 160, 90], [128, 128, 128], [60, 80, 170], [255, 255, 255], [0, 0, 0]]],
    dtype=np.uint8,
)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize(("columns", "exponent"), [(P3, 2.2), (ADOBE, 2.2)])
def test_wide_colors_become_those_of_srgb(form, columns, exponent):
    how = {"lossless": True} if form == "WEBP" else {}
    data = file_of(Image.fromarray(COLORS), form, icc_profile=rgb_profile(columns, exponent), **how)
    np.testing.assert_array_equal(read_pixels(data), COLORS)
    converted = read_pixels(data, color="srgb")
    np.testing.assert_allclose(converted, expected_of(COLORS, columns, exponent), atol=1.6)
    assert np.abs(converted.astype(int) - COLORS).max() > 20


def test_both_readers_of_jpegs_convert_them_the_same():
    big = np.repeat(np.repeat(COLORS, 64, 0), 64, 1)
    icc = rgb_profile(P3, 2.2)
    data = file_of(Image.fromarray(big), "JPEG", quality=98, subsampling=0, icc_profile=icc)
    slow = read_pixels(data, color="srgb")
    np.testing.assert_allclose(slow[32, 32::64], expected_of(COLORS, P3, 2.2)[0], atol=4)
    for reduction in (1, 2, 4):
        fast, factor = decode(data, reduction, color="srgb")
        assert factor == reduction
        middle = fast[:, 32 // factor, 32 // factor :: 64 // factor].T.numpy()
        np.testing.assert_allclose(middle, slow[32, 32::64], atol=2)
        kept, _ = decode(data, reduction)
        assert torch.equal(kept, decode(data, reduction, color="ignore")[0])
        assert (kept.int() - fast.int()).abs().max() > 20


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_gray_through_a_gray_profile(form):
    gray = np.repeat(np.arange(0, 256, 5, dtype=np.uint8)[None], 16, 0)
    data = file_of(Image.fromarray(gray), form, icc_profile=gray_profile(1.8))
    converted = read_pixels(data, color="srgb")
    original = read_pixels(data)[..., :1]
    np.testing.assert_allclose(converted, encoded((original / 255.0) ** 1.8).repeat(3, 2), atol=1)
    np.testing.assert_array_equal(decode(data, color="srgb")[0].permute(1, 2, 0), converted)


def test_gray_of_an_rgb_profile_goes_through_its_curve():
    data = file_of(Image.new("L", (4, 4), 100), "PNG", icc_profile=rgb_profile(P3, 1.0))
    assert abs(read_pixels(data, color="srgb")[0, 0].astype(int) - encoded(100 / 255)).max() <= 1


def test_inks_through_the_profile_of_a_printer():
    inks = np.array([[[0, 0, 0, 0], [255, 0, 0, 0], [0, 0, 0, 255]]], dtype=np.uint8)
    data = file_of(Image.fromarray(inks, "CMYK"), "TIFF", icc_profile=ink_profile())
    gray = encoded(((50.2 + 16) / 116) ** 3)
    converted = read_pixels(data, color="srgb")[0]
    np.testing.assert_allclose(converted, [[255] * 3, [gray] * 3, [0] * 3], atol=2)


def test_alpha_stays_and_is_put_on_white_after_the_conversion():
    pixels = np.dstack([COLORS, np.array([[0, 255, 255, 255, 255, 255]], dtype=np.uint8)])
    data = file_of(Image.fromarray(pixels), "PNG", icc_profile=rgb_profile(ADOBE, 2.2))
    converted = read_pixels(data, color="srgb")[0]
    assert converted[0].tolist() == [255, 255, 255]
    np.testing.assert_allclose(converted[1:], expected_of(COLORS, ADOBE, 2.2)[0, 1:], atol=1.6)


def test_a_palette_is_converted_too():
    image = Image.fromarray(COLORS).convert("P", palette=Image.Palette.ADAPTIVE)
    plain = np.asarray(image.convert("RGB"))
    data = file_of(image, "PNG", icc_profile=rgb_profile(P3, 2.2))
    converted = read_pixels(data, color="srgb")
    np.testing.assert_allclose(converted, expected_of(plain, P3, 2.2), atol=1.6)


def notes_of(data: bytes, color: str) -> list[str]:
    notes: list[str] = []
    read_pixels(data, notes.append, color=color)
    return notes


def test_what_is_ignored_is_said():
    rgb = Image.fromarray(COLORS)
    wide = file_of(rgb, "PNG", icc_profile=rgb_profile(P3, 2.2))
    phrase = "have a color profile that is not sRGB; set data.color=srgb to convert them"
    assert notes_of(wide, "ignore") == [phrase]
    assert notes_of(wide, "srgb") == []
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    usual = file_of(rgb, "PNG", icc_profile=own)
    assert notes_of(usual, "ignore") == notes_of(usual, "srgb") == []
    np.testing.assert_array_equal(read_pixels(usual, color="srgb"), COLORS)
    deep = file_of(Image.fromarray(np.zeros((4, 4), np.uint16)), "PNG", icc_profile=gray_profile(1))
    assert notes_of(deep, "ignore") == []
    assert notes_of(deep, "srgb") == [
        "have a color profile that is not sRGB, which is ignored, since they have more than 8 bits"
    ]


@pytest.mark.parametrize(
    "icc", [b"no profile", rgb_profile(P3, 2.2)[:300], gray_profile(2.2), ink_profile()]
)
def test_a_profile_that_cannot_be_used_is_said_and_ignored(icc):
    data = file_of(Image.fromarray(COLORS), "PNG", icc_profile=icc)
    np.testing.assert_array_equal(read_pixels(data, color="srgb"), COLORS)
    assert notes_of(data, "srgb") == [
        "have a color profile that is damaged or of another color model, and is ignored"
    ]
    assert notes_of(data, "ignore") == []


@pytest.mark.parametrize("pixels", ["stored", "original"])
def test_a_config_says_whether_images_are_converted(tmp_path, caplog, pixels):
    for i in range(6):
        how = {"icc_profile": rgb_profile(P3, 2.2)} if i < 2 else {}
        image = Image.fromarray(COLORS.repeat(8, 0).repeat(2, 1) - np.uint8(i))
        image.save(tmp_path / f"{i}.png", **how)

    def opened(**more):
        config = {"kind": "folder", "path": str(tmp_path), "test_fraction": 0, "pixels": pixels}
        settings = SOURCES.schema("folder").model_validate(config | more)
        return open_stores(open_source(settings), settings, 8, tmp_path / "data")["train"]

    plain = opened()
    assert "2 of 6 images have a color profile that is not sRGB; set data.color=" in caplog.text
    caplog.clear()
    converted = opened(color="srgb")
    assert "color profile" not in caplog.text
    assert plain.fingerprint != converted.fingerprint
    assert opened(color="ignore").fingerprint == plain.fingerprint
    np.testing.assert_array_equal(plain.images[2:], converted.images[2:])
    assert (np.asarray(plain.images[:2]) != np.asarray(converted.images[:2])).any()
    np.testing.assert_allclose(
        np.asarray(converted.images[:2]).astype(float).mean((1, 2)),
        [
            square(read_pixels(tmp_path / f"{i}.png", color="srgb"), 8).mean((0, 1))
            for i in range(2)
        ],
    )
