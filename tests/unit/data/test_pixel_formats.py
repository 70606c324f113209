"""Bands, bit depths, pages and file formats: read correctly, or rejected with the reason."""

import os
import socket
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from raw_files import png16, tiff

from ssdistill.data import decode, deep_pixels
from ssdistill.data.decode import BadImage, is_deep_file, pixel_limit, read_image, read_pixels
from ssdistill.data.deep_pixels import full_range, render

RAMP = np.arange(0, 4000, 100, dtype=np.uint16).reshape(5, 8)


@pytest.fixture
def put(tmp_path):
    def put(content, name="a.tif"):
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return put


@pytest.mark.parametrize("kind", [np.uint16, np.int16, np.int32, np.uint32, np.float32])
def test_deep_gray_tiffs_keep_their_values_and_type(put, kind):
    values = RAMP.astype(kind) - (kind(500) if np.dtype(kind).kind in "if" else kind(0))
    path = put(tiff(values))
    assert is_deep_file(path)
    pixels = read_pixels(path)
    assert pixels.dtype == kind
    assert np.array_equal(pixels, values)


def test_values_of_the_upper_half_of_32_bits_are_not_negative(put):
    values = np.array([[0, 2**31, 2**32 - 1]], dtype=np.uint32)
    assert read_pixels(put(tiff(values))).tolist() == values.tolist()


def test_white_is_zero_is_turned_over(put):
    assert np.array_equal(read_pixels(put(tiff(RAMP, photometric=0))), 65535 - RAMP)


@pytest.mark.parametrize("order", ["<", ">"])
def test_both_byte_orders_of_16_bits_are_read(tmp_path, order):
    path = tmp_path / "a.tif"
    Image.frombytes(
        "I;16B" if order == ">" else "I;16", (8, 5), RAMP.astype(f"{order}u2").tobytes()
    ).save(path)
    assert np.array_equal(read_pixels(path), RAMP)


@pytest.mark.parametrize("bands", [1, 2, 3, 4])
def test_pngs_of_16_bits_keep_all_of_them(put, bands):
    values = np.random.default_rng(0).integers(0, 4096, (5, 7, bands), dtype=np.uint16)
    path = put(png16(values), "a.png")
    assert is_deep_file(path)
    assert np.array_equal(read_pixels(path), values[..., 0] if bands == 1 else values)


def test_8_bit_files_are_not_deep(tmp_path):
    for name in ("a.png", "a.jpg", "a.gif", "a.bmp", "a.webp", "a.tif", "a.ppm"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
        assert not is_deep_file(tmp_path / name)
        assert read_pixels(tmp_path / name).dtype == np.uint8


def test_a_window_makes_bytes_of_values_and_clips_what_is_beyond():
    values = np.array([[0, 100, 150, 200, 900]], dtype=np.int32)
    assert render(values, (100, 200))[0, :, 0].tolist() == [0, 0, 128, 255, 255]
    full = render(np.array([[0, 257, 32768, 65535]], np.uint16), full_range(np.dtype("u2")))
    assert full[0, :, 1].tolist() == [0, 1, 128, 255]


def test_deep_alpha_is_composited_on_white_after_the_window():
    values = np.array([[[4095, 65535], [4095, 0], [0, 65535]]], dtype=np.uint16)
    assert render(values, (0, 4095))[0, :, 0].tolist() == [255, 255, 0]
    assert render(np.array([[[0, 0, 0, 0]]], np.uint16), (0, 1))[0, 0].tolist() == [255] * 3


def test_values_that_are_not_finite_are_refused(put):
    values = np.ones((4, 4), dtype=np.float32)
    values[1, 1] = np.nan
    with pytest.raises(BadImage, match="NaN or infinite"):
        read_pixels(put(tiff(values)))


def test_deep_pictures_are_turned_by_their_exif(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RAMP).save(tmp_path / "a.png", exif=exif)
    Image.fromarray((RAMP // 100).astype(np.uint8)).save(tmp_path / "b.png", exif=exif)
    deep, plain = read_pixels(tmp_path / "a.png"), read_pixels(tmp_path / "b.png")
    assert np.array_equal(deep // 100, plain[..., 0])


# bands


@pytest.mark.parametrize(
    ("bands", "photometric", "extra"),
    [(4, 2, ()), (4, 2, (0,)), (5, 2, (0, 0)), (5, 2, (2, 0)), (2, 1, (0,)), (5, 5, (0,))],
)
def test_a_band_that_is_neither_color_nor_alpha_is_refused(put, bands, photometric, extra):
    content = tiff(np.zeros((4, 4, bands), np.uint8), photometric=photometric, extra=extra)
    # Pillow 10 does not open two bands at all.
    reason = f"{bands} bands, .* neither a color nor declared as alpha|unusual number of bands"
    with pytest.raises(BadImage, match=reason):
        read_pixels(put(content))


@pytest.mark.parametrize(("bands", "photometric"), [(2, 1), (4, 2)])
def test_a_declared_alpha_is_alpha(put, bands, photometric):
    values = np.full((4, 4, bands), 40, np.uint8)
    values[0, 0, -1], values[0, 1, -1] = 0, 255
    pixels = read_pixels(put(tiff(values, photometric=photometric, extra=(2,))))
    assert pixels[0, :2].tolist() == [[255] * 3, [40] * 3]


def test_bands_that_no_reader_knows_are_refused_with_a_hint(put):
    with pytest.raises(BadImage, match="TIFF with an unusual number of bands or bits"):
        read_pixels(put(tiff(np.zeros((4, 4, 13), np.uint16), extra=(0,) * 12)))


def test_16_bit_color_tiffs_are_refused_rather_than_cut(put):
    with pytest.raises(BadImage, match="16-bit color TIFF"):
        read_pixels(put(tiff(np.zeros((4, 4, 3), np.uint16), photometric=2)))


# pages and frames


def test_a_stack_of_pages_is_refused_and_a_thumbnail_is_not(put):
    page = np.full((6, 6), 7, np.uint8)
    with pytest.raises(BadImage, match="a stack of 3 pages"):
        read_pixels(put(tiff(page, page, page)))
    assert (read_pixels(put(tiff(page, page[:3, :3]))) == 7).all()


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png"])
def test_an_animation_gives_its_first_frame_and_says_so(tmp_path, name):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "green", "blue")]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    notes = []
    read_pixels(tmp_path / name, notes.append)
    assert notes == ["are animated: only the first frame is read"]
    frames[0].save(tmp_path / name)
    read_pixels(tmp_path / name, notes.append)
    assert len(notes) == 1


# what a name may stand for


def test_content_decides_and_not_the_name(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    for name in ("png.jpg", "png.jfif", "png"):
        Image.fromarray(pixels).save(tmp_path / name, format="PNG")
        assert np.array_equal(read_pixels(tmp_path / name), pixels)


@pytest.mark.parametrize(
    "content",
    [
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n",
        b"\xd7\xcd\xc6\x9a" + bytes(60),
    ],
    ids=["eps", "wmf"],
)
def test_formats_that_other_programs_draw_are_never_opened(tmp_path, monkeypatch, content):
    def start(*_, **__):
        raise AssertionError("a program was started")

    monkeypatch.setattr("subprocess.Popen", start)
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(BadImage):
        read_pixels(tmp_path / "a.png")


def test_pipes_sockets_devices_and_folders_do_not_hang(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.jpg")
    os.mkdir("folder.jpg")
    os.symlink("/dev/zero", "device.jpg")
    os.symlink("pipe.jpg", "link.jpg")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("socket.jpg")
        kinds = {"pipe": "a named pipe", "folder": "a folder", "device": "a device"}
        kinds |= {"socket": "a socket", "link": "a named pipe"}
        for name, kind in kinds.items():
            assert not is_deep_file(f"{name}.jpg")
            with pytest.raises(BadImage, match=f"{kind}, not a regular file"):
                read_pixels(f"{name}.jpg")


def test_links_to_files_are_followed_and_circles_named(tmp_path):
    Image.new("RGB", (4, 4), "red").save(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("a.png")
    (tmp_path / "c.png").symlink_to("c.png")
    assert read_pixels(tmp_path / "b.png")[0, 0].tolist() == [255, 0, 0]
    with pytest.raises(BadImage, match="symbolic links"):
        read_pixels(tmp_path / "c.png")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_the_limit_of_pixels_can_be_moved_both_ways(tmp_path):
    Image.new("L", (20, 10)).save(tmp_path / "a.png")
    for limit in (199, 50):
        with (
            pixel_limit(limit),
            pytest.raises(BadImage, match=rf"more than {limit} pixels.*data\.max_pixels"),
        ):
            read_pixels(tmp_path / "a.png")
    with pixel_limit(200):
        assert read_pixels(tmp_path / "a.png").shape == (10, 20, 3)


def test_giants_are_decoded_one_at_a_time(tmp_path, monkeypatch):
    Image.new("L", (20, 10)).save(tmp_path / "a.png")
    held = []
    monkeypatch.setattr(decode, "GIANT_PIXELS", 100)
    monkeypatch.setattr(decode, "_rgb", lambda *_: held.append(decode._one_giant.locked()))
    read_pixels(tmp_path / "a.png")
    monkeypatch.setattr(decode, "GIANT_PIXELS", 200)
    read_pixels(tmp_path / "a.png")
    assert held == [True, False]


def test_a_picture_that_memory_does_not_hold_is_refused_by_its_size(tmp_path, monkeypatch):
    def full(*_):
        raise MemoryError

    Image.new("L", (20, 10)).save(tmp_path / "a.png")
    monkeypatch.setattr(decode, "_rgb", full)
    with pytest.raises(BadImage, match=r"20x10 pixels do not fit into memory.*max_pixels"):
        read_pixels(tmp_path / "a.png")


def test_a_header_that_promises_a_bomb_is_refused_before_anything_is_decoded(put):
    content = bytearray(png16(np.zeros((1, 1, 3), np.uint16)))
    content[16:24] = struct.pack(">II", 200_000, 200_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    with pytest.raises(BadImage, match=r"more than \d+ pixels; raise data\.max_pixels"):
        read_pixels(put(bytes(content), "a.png"))


def test_a_truncated_16_bit_png_is_refused(put):
    values = np.random.default_rng(0).integers(0, 65536, (64, 64, 3), dtype=np.uint16)
    content = png16(values)
    with pytest.raises(BadImage) as caught:
        read_pixels(put(content[: len(content) // 2], "a.png"))
    assert "\n" not in caught.value.reason


def test_read_image_spans_the_full_range_of_16_bits(put):
    assert read_image(put(png16(np.full((2, 2, 3), 257, np.uint16)), "a.png")).max() == 1


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "CMYK", "1"])
def test_a_giant_is_read_in_strips_as_any_other(tmp_path, monkeypatch, mode):
    noise = np.random.default_rng(0).integers(0, 256, (50, 7, 4), dtype=np.uint8)
    Image.fromarray(noise).convert("RGB" if mode == "CMYK" else "RGBA").convert(mode).save(
        tmp_path / "a.tif"
    )
    whole = read_pixels(tmp_path / "a.tif")
    monkeypatch.setattr(decode, "GIANT_PIXELS", 10)
    monkeypatch.setattr(decode, "STRIP_ROWS", 8)
    assert np.array_equal(read_pixels(tmp_path / "a.tif"), whole)


def test_values_are_rendered_in_strips_as_at_once(monkeypatch):
    values = np.random.default_rng(0).integers(0, 4096, (50, 7), dtype=np.uint16)
    whole = render(values, (0, 4095))
    monkeypatch.setattr(deep_pixels, "STRIP_PIXELS", 20)
    assert np.array_equal(render(values, (0, 4095)), whole)
