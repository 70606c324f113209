import io

import numpy as np
import pytest
from PIL import Image

from ssdistill.data.decode import BadImage, read_image, square

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


@pytest.fixture
def saved(tmp_path):
    """Saves an image and reads it back through `read_image`."""

    def save_and_read(image, name, **options):
        image.save(tmp_path / name, **options)
        array = read_image(tmp_path / name)
        assert array.dtype == np.uint8
        assert array.ndim == 3 and array.shape[2] == 3
        return array

    return save_and_read


def near(array, color, tolerance=2):
    return np.abs(array.astype(int) - np.array(color)).max() <= tolerance


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.webp", "a.ppm"])
def test_lossless_formats_give_back_the_exact_pixels(saved, name):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    options = {"lossless": True} if name.endswith("webp") else {}
    assert np.array_equal(saved(Image.fromarray(pixels), name, **options), pixels)


def test_color_jpeg_is_rgb(saved):
    assert near(
        saved(Image.new("RGB", (16, 16), (200, 50, 20)), "a.jpg", quality=95), (200, 50, 20)
    )


def test_gray_jpeg_has_three_equal_channels(saved):
    assert near(saved(Image.new("L", (16, 16), 77), "a.jpg", quality=95), (77, 77, 77), 1)


def test_cmyk_jpeg_has_the_right_colors_and_not_their_negative(saved):
    red_in_inks = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert near(saved(red_in_inks, "red.jpg", quality=95), RED, 4)
    dark = Image.new("CMYK", (16, 16), (0, 0, 0, 200))
    assert near(saved(dark, "dark.jpg", quality=95), (55, 55, 55), 4)


def test_exif_orientation_is_applied(saved):
    image = Image.new("RGB", (32, 16), BLUE)
    image.paste(RED, (0, 0, 16, 16))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise: the left half comes to lie on top
    array = saved(image, "a.jpg", exif=exif, quality=95, subsampling=0)
    assert array.shape == (32, 16, 3)
    assert near(array[:14], RED, 4)
    assert near(array[18:], BLUE, 4)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff",
        # An offset of the wrong type, at which Pillow raises rather than warns.
        b"Exif\0\0MM\0*\0\0\0\x08\0\x04\x01R\0\x02\0\0\0\r\0\0\0>\x01\x12\0\x03\0\0\0\x01"
        b"\0\x06\0\0\x01\x1a\0\x05\0\0\0\x01\0\0\0L\x87i\0\x04\0\0\xde\x01\0\0\0T\0\0\0\0"
        b"camera maker\0\0\0\0\0H\0\0\0",
    ],
    ids=["cut", "wrong type"],
)
def test_damaged_exif_does_not_cost_the_picture(saved, exif):
    assert near(saved(Image.new("RGB", (8, 8), RED), "a.jpg", exif=exif), RED, 4)


def test_sixteen_bit_gray_is_scaled_and_not_clipped(saved):
    pixels = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    for name in ("a.png", "a.tif"):
        array = saved(Image.fromarray(pixels), name)
        assert array[0, :, 0].tolist() == [0, 1, 128, 255]
        assert (array == array[..., :1]).all()


def test_one_bit_pictures_are_black_and_white(saved):
    image = Image.new("1", (4, 1))
    image.putpixel((2, 0), 1)
    assert saved(image, "a.png")[0, :, 0].tolist() == [0, 0, 255, 0]


def test_palette_colors_are_looked_up(saved):
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *GREEN])
    image.putpixel((1, 0), 1)
    assert saved(image, "a.png")[0].tolist() == [[255, 0, 0], [0, 255, 0]]


def test_transparent_palette_entries_become_white(saved):
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *GREEN])
    image.putpixel((1, 0), 1)
    assert saved(image, "a.png", transparency=0)[0].tolist() == [[255, 255, 255], [0, 255, 0]]


def test_alpha_is_composited_on_white(saved):
    rgba = np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [0, 0, 0, 128]]], dtype=np.uint8)
    assert saved(Image.fromarray(rgba), "a.png")[0].tolist() == [
        [255, 0, 0],
        [255, 255, 255],
        [127, 127, 127],
    ]
    gray_alpha = np.array([[[40, 255], [40, 0]]], dtype=np.uint8)
    assert saved(Image.fromarray(gray_alpha, "LA"), "b.png")[0, :, 0].tolist() == [40, 255]


def test_the_transparent_color_of_an_rgb_png_becomes_white(saved):
    image = Image.new("RGB", (2, 1), RED)
    image.putpixel((1, 0), BLUE)
    assert saved(image, "a.png", transparency=RED)[0].tolist() == [[255, 255, 255], [0, 0, 255]]


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png"])
def test_the_first_frame_of_an_animation_counts(saved, name):
    frames = [Image.new("RGB", (8, 8), color) for color in (RED, GREEN, BLUE)]
    array = saved(frames[0], name, save_all=True, append_images=frames[1:])
    assert near(array, RED, 4)


def jpeg_bytes():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"<html>not found</html>", "Pillow cannot read"),
        (jpeg_bytes()[:1500], "truncated"),
        (jpeg_bytes()[:20], "."),
    ],
)
def test_files_that_give_no_picture_are_refused_with_the_reason(tmp_path, content, reason):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(BadImage, match=reason) as caught:
        read_image(tmp_path / "a.jpg")
    assert "\n" not in caught.value.reason


def test_a_png_cut_in_its_pixels_is_refused(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(BadImage):
        read_image(tmp_path / "a.png")


def test_no_damage_to_a_file_gets_past_bad_image(tmp_path):
    rng = np.random.default_rng(1)
    original = np.frombuffer(jpeg_bytes(), dtype=np.uint8)
    refused = 0
    for _ in range(60):
        content = original.copy()
        content[rng.integers(0, 700, 8)] = rng.integers(0, 256, 8)
        (tmp_path / "a.jpg").write_bytes(content.tobytes())
        try:
            read_image(tmp_path / "a.jpg")
        except BadImage:
            refused += 1
    assert refused > 0


def test_a_missing_file_is_a_bad_image(tmp_path):
    with pytest.raises(BadImage, match="No such file"):
        read_image(tmp_path / "gone.png")


# Pillow itself only warns up to twice its limit.
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("limit", [99, 40])
def test_decompression_bombs_are_refused_before_decoding(tmp_path, monkeypatch, limit):
    Image.new("L", (10, 10)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(BadImage, match=f"more than {limit} pixels"):
        read_image(tmp_path / "a.png")


def test_float_pixels_are_refused(tmp_path):
    Image.fromarray(np.ones((4, 4), dtype=np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(BadImage, match="32-bit"):
        read_image(tmp_path / "a.tif")


def test_square_keeps_the_center():
    wide = np.zeros((10, 30, 3), dtype=np.uint8)
    wide[:, 10:20] = 255
    assert np.array_equal(square(wide, 10), np.full((10, 10, 3), 255))
    assert np.array_equal(square(wide.transpose(1, 0, 2), 10), np.full((10, 10, 3), 255))


def test_square_averages_when_it_shrinks():
    checks = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    small = square(np.repeat(checks[..., None], 3, axis=2), 8)
    assert small.shape == (8, 8, 3)
    assert small.min() > 110 and small.max() < 145


def test_square_leaves_a_picture_of_the_right_size_alone():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    assert square(pixels, 6) is pixels
