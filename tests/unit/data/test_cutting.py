"""Decoding at a smaller size, upright, whatever the mode; and cutting."""

import io

import pytest
import torch
from image_files import smooth_noise
from PIL import Image

from ssdistill.data import cutting
from ssdistill.data.decode import read_image


def encoded(mode: str = "RGB", size=(900, 700), **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(smooth_noise(1, size[1], size[0])).convert(mode).save(file, "JPEG", **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("shrinking", "factor"), [(0.5, 1), (1.9, 1), (2.0, 2), (5.0, 4), (8.0, 8), (30.0, 8)]
)
def test_an_image_is_decoded_as_small_as_every_view_allows(shrinking, factor):
    wide = cutting.Box(0, 0, 1000, 2000, 10)
    assert cutting.reduction_of([wide]) == 8
    tight = cutting.Box(0, 0, round(100 * shrinking), 9000, 100)
    assert cutting.reduction_of([wide, tight]) == factor


@pytest.mark.parametrize("factor", [2, 4])
def test_a_reduced_image_gives_nearly_the_same_view(factor):
    data = encoded(quality=92)
    box = cutting.Box(8, 16, 640, 800, 640 // factor)
    whole, one = cutting.decode(data)
    small, found = cutting.decode(data, factor)
    assert (one, found) == (1, factor)
    assert small.shape == (3, 700 // factor, 900 // factor)
    views = [cutting.cut(i, box.over(f)).float() for i, f in ((whole, 1), (small, factor))]
    error = (views[0] - views[1]).square().mean()
    assert 10 * torch.log10(255**2 / error) > 35


def test_only_jpegs_are_reduced():
    file = io.BytesIO()
    Image.fromarray(smooth_noise(1, 64, 64)).save(file, "PNG")
    image, factor = cutting.decode(file.getvalue(), 4)
    assert (image.shape, factor) == ((3, 64, 64), 1)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_other_modes_are_read_as_everywhere(mode, tmp_path):
    data = encoded(mode, (64, 48))
    (tmp_path / "a.jpg").write_bytes(data)
    image, _ = cutting.decode(data, 2 if mode == "CMYK" else 1)
    wanted = torch.tensor(read_image(tmp_path / "a.jpg")).permute(2, 0, 1)
    assert image.shape == wanted.shape
    assert (image.int() - wanted.int()).abs().max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("factor", [1, 2])
def test_images_are_turned_upright(orientation, factor, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(size=(96, 64), exif=exif)
    (tmp_path / "a.jpg").write_bytes(data)
    wanted = torch.tensor(read_image(tmp_path / "a.jpg")).permute(2, 0, 1).float()
    image, found = cutting.decode(data, factor)
    assert found == factor
    if factor == 2:
        wanted = torch.nn.functional.avg_pool2d(wanted, 2)
    assert image.shape == wanted.shape
    assert (image.float() - wanted).abs().mean() < 3


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_without_torchvisions_decoder_the_pixels_are_the_same(mode, monkeypatch):
    data = encoded(mode, (133, 97))
    image, _ = cutting.decode(data, 1)
    monkeypatch.setattr(cutting, "decode_jpeg", None)
    again, factor = cutting.decode(data, 1)
    assert factor == 1 and torch.equal(image, again)
