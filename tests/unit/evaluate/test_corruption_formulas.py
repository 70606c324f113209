"""Each corruption against an independent formula."""

import colorsys
import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from slow_waves import plain, smooth

from ssdistill.evaluate.corruptions import SEVERITIES, blur, corrupt, digital, noise, weather
from ssdistill.evaluate.corruptions.draws import Draws
from ssdistill.evaluate.corruptions.filters import (
    ONE,
    cloud_rows,
    disk_kernel,
    gaussian_rows,
    pixelate_rows,
    zoom_rows,
)

# noise


def test_numbers_drawn_are_uniform_normal_and_unrelated():
    draws = Draws(0, 1, torch.arange(64))
    normal = draws.normal(0, 1024).double()
    assert normal.mean().abs() < 0.02 and (normal.var() - 1).abs() < 0.02
    assert ((normal**4).mean() - 3).abs() < 0.1
    words = draws.words(1, 1024)
    assert words.min() >= 0 and words.max() < 65536
    assert np.abs(np.histogram(words, bins=16, range=(0, 65536))[0] / 4096 - 1).max() < 0.08
    assert draws.below(2, 3, 999).unique().tolist() == [0, 1, 2]
    fields = torch.stack([normal.flatten(), draws.normal(1, 1024).double().flatten(),
                          Draws(0, 2, torch.arange(64)).normal(0, 1024).double().flatten(),
                          normal.roll(1, 0).flatten(), normal.roll(1, 1).flatten()])  # fmt: skip
    correlation = torch.corrcoef(fields) - torch.eye(5)
    assert correlation.abs().max() < 0.02


@pytest.mark.parametrize(("severity", "deviation"), [(1, 0.04), (3, 0.08), (5, 0.10)])
@pytest.mark.parametrize(("side", "factor"), [(16, 1), (32, 1), (64, 2**0.5)])
def test_gaussian_noise_has_the_stated_deviation(severity, deviation, side, factor):
    noise = corrupt(plain(128, side=side), "gaussian_noise", severity).astype(float) - 128
    assert abs(noise.mean()) < 0.6
    # Rounding adds a twelfth.
    assert noise.var() == pytest.approx((255 * deviation * factor) ** 2 + 1 / 12, rel=0.04)


@pytest.mark.parametrize("value", [10, 60, 120])
@pytest.mark.parametrize(("severity", "photons"), [(1, 500), (2, 250), (5, 50)])
def test_shot_noise_has_poissons_mean_and_variance(value, severity, photons):
    found = corrupt(plain(value, count=32), "shot_noise", severity).astype(float)
    assert found.mean() == pytest.approx(value, rel=0.02)
    assert found.var() == pytest.approx(255 * value / photons + 1 / 12, rel=0.05)
    assert (corrupt(plain(0), "shot_noise", severity) == 0).all()


@pytest.mark.parametrize(("severity", "share"), [(1, 0.01), (5, 0.07)])
def test_impulse_noise_strikes_its_share_half_white_half_black(severity, share):
    found = corrupt(plain(77, count=64), "impulse_noise", severity)
    assert set(np.unique(found)) == {0, 77, 255}
    for value in (0, 255):
        assert (found == value).mean() == pytest.approx(share / 2, rel=0.1)


# blurs


def test_the_weights_of_filters_add_up_to_one_and_are_whole():
    rows = [gaussian_rows(20, sigma) for sigma in (0.05, 0.4, 3.0, 9.0)]
    rows += [zoom_rows(32, factor) for factor in (1.0, 1.01, 2.25)]
    rows += [cloud_rows(33, 4), pixelate_rows(32, 27)]
    for radius, sigma in (*blur.DEFOCUS, (10.5, 0.7)):
        rows.append(disk_kernel(radius, sigma).flatten()[None])
    for weights in rows:
        assert (weights.sum(1) == ONE).all() and (weights >= 0).all()
        assert torch.equal(weights, weights.round())


@pytest.mark.parametrize("severity", SEVERITIES)
def test_defocus_is_a_soft_disk(severity):
    radius, sigma = blur.DEFOCUS[severity - 1]
    y, x = np.mgrid[-4:5, -4:5]
    disk = (x**2 + y**2 <= radius**2).astype(float)
    edge = np.exp(-(np.array([-1, 0, 1]) ** 2) / (2 * sigma**2))
    kernel = ndimage.convolve(disk, np.outer(edge, edge), mode="constant")
    images = smooth(3)
    expected = ndimage.convolve(
        images.astype(float), (kernel / kernel.sum())[None, :, :, None], mode="mirror"
    )
    assert np.abs(corrupt(images, "defocus_blur", severity) - expected).max() < 0.51


def test_glass_moves_pixels_and_makes_none():
    place = np.stack(np.broadcast_arrays(*np.mgrid[:32, :32] * 8, 5), axis=-1)
    images = np.repeat(place[None], 4, axis=0).astype(np.uint8)
    found = corrupt(images, "glass_blur", 1)
    for one in found:
        assert sorted(map(tuple, one.reshape(-1, 3))) == sorted(map(tuple, place.reshape(-1, 3)))
    moved = np.abs(found.astype(int) - images)[..., :2].max(-1) / 8
    assert 0.5 < (moved > 0).mean() < 0.9 and moved.mean() < 1.5


def test_motion_smears_a_point_within_45_degrees_and_keeps_its_light():
    images = plain(0, count=40)
    images[:, 16, 20] = 250
    found = corrupt(images, "motion_blur", 5)[..., 0].astype(float)
    assert np.abs(found.sum((1, 2)) - 250).max() < 8
    for one in found:
        rows, columns = np.nonzero(one)
        assert columns.max() == 20 and columns.min() < 17
        assert (np.abs(rows - 16) <= np.abs(columns - 20)).all()
    assert len({tuple(np.nonzero(one)[0]) for one in found}) > 5


def test_zoom_is_the_mean_of_enlargements():
    images = smooth(2)
    total = 2.0 * images
    for step in range(1, 16):
        at = (np.arange(32) - 15.5) / (1 + step / 100) + 15.5
        rows, columns = np.meshgrid(at, at, indexing="ij")
        for i in range(2):
            for c in range(3):
                total[i, ..., c] += ndimage.map_coordinates(
                    images[i, ..., c].astype(float), [rows, columns], order=1
                )
    assert np.abs(corrupt(images, "zoom_blur", 3) - total / 17).max() < 0.52


# weather


@pytest.mark.parametrize("severity", [1, 5])
def test_snow_only_brightens(severity):
    images = smooth(8)
    assert (corrupt(images, "snow", severity).astype(int) >= images.astype(int) - 1).all()


def test_frost_lies_between_the_dimmed_picture_and_full_ice():
    images = smooth(16)
    found = corrupt(images, "frost", 5).astype(float)
    assert (found >= 0.85 * images - 1).all()
    assert (found <= 0.85 * images + 0.6 * 255 + 1).all()
    ice = corrupt(plain(0), "frost", 1).astype(float) / (0.2 * 255)
    assert 0.3 < ice.mean() < 0.7 and ice.std() > 0.12
    red, green, blue = ice.mean((0, 1, 2))
    assert red < green < blue


def test_fog_keeps_the_brightest_value_and_is_smooth():
    found = corrupt(plain(200), "fog", 2).astype(float)
    assert found.max((1, 2, 3)).tolist() == [200] * 16
    # No cloud at all leaves 200 · 200 / (200 + 255 · 0.5).
    assert found.min((1, 2, 3)) == pytest.approx([200 * 200 / 327.5] * 16, abs=0.51)
    assert np.abs(np.diff(found, axis=1)).mean() < 0.1 * found.std() * 3
    assert (corrupt(plain(0), "fog", 5) == 0).all()


# light and formats


@pytest.mark.parametrize(("severity", "added"), [(1, 0.05), (5, 0.3)])
def test_brightness_adds_to_the_value_of_hsv(severity, added):
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    images[0, 0, 0], images[0, 0, 1] = 0, 255
    expected = images.astype(float)
    for place in np.ndindex(images.shape[:3]):
        hue, saturation, value = colorsys.rgb_to_hsv(*(images[place] / 255))
        expected[place] = 255 * np.array(
            colorsys.hsv_to_rgb(hue, saturation, min(1, value + added))
        )
    assert np.abs(corrupt(images, "brightness", severity) - expected).max() < 0.51


@pytest.mark.parametrize(("severity", "left"), [(1, 0.75), (5, 0.15)])
def test_contrast_shrinks_the_distance_from_each_channels_mean(severity, left):
    images = smooth(4)
    mean = images.mean((1, 2), keepdims=True)
    expected = (images - mean) * left + mean
    assert np.abs(corrupt(images, "contrast", severity) - expected).max() < 0.51


def test_elastic_moves_its_three_points_and_leaves_plain_pictures_alone():
    assert (corrupt(plain(99), "elastic_transform", 5) == 99).all()
    jitter = torch.tensor([[[1.0, 2.0], [-3.0, 0.5], [0.25, -1.0]]], dtype=torch.float64)
    shift = digital._affine(32, 32, jitter)[0]
    for k, (x, y) in enumerate([(26, 26), (26, 6), (6, 6)]):
        assert shift[:, y, x].tolist() == pytest.approx(jitter[0, k].tolist())


def test_elastic_fields_have_the_stated_strength():
    strength, smoothness, moved = digital.ELASTIC[4]
    ramp = np.broadcast_to(np.arange(32)[:, None] * 4 + 60, (32, 32))
    images = np.repeat(np.repeat(ramp[None, ..., None], 3, axis=3), 200, axis=0).astype(np.uint8)
    found = corrupt(images, "elastic_transform", 5).astype(float)
    at_point = (found - images)[:, 6, 6, 0] / 4
    # A uniform field under a Gaussian, and a uniform jitter.
    field = strength * 32 / 3**0.5 / (2 * np.pi**0.5 * smoothness * 32)
    assert at_point.std() == pytest.approx((field**2 + (moved * 32) ** 2 / 3) ** 0.5, rel=0.12)


@pytest.mark.parametrize(("severity", "kept"), [(1, 30), (5, 20)])
def test_pixelate_shows_the_means_of_whole_parts(severity, kept):
    images = smooth(2)
    part = ((np.arange(32) + 0.5) * kept / 32).astype(int)
    expected = images.astype(float)
    for a in range(kept):
        for b in range(kept):
            block = np.ix_(range(2), part == a, part == b)
            expected[block] = images[block].mean((1, 2), keepdims=True)
    assert len(np.unique(part)) == kept
    assert np.abs(corrupt(images, "pixelate", severity) - expected).max() < 0.51


@pytest.mark.parametrize(("severity", "quality"), [(1, 80), (5, 40)])
def test_jpeg_is_what_pillow_writes_at_that_quality(severity, quality):
    images = smooth(4)
    found = corrupt(images, "jpeg_compression", severity).astype(int)
    for before, after in zip(images, found, strict=True):
        file = io.BytesIO()
        Image.fromarray(before).save(file, "JPEG", quality=quality)
        assert np.abs(np.asarray(Image.open(file)).astype(int) - after).max() == 0


@pytest.mark.parametrize(
    ("constant", "published"),
    [
        pytest.param(noise.DEVIATION, (0.04, 0.06, 0.08, 0.09, 0.10), id="gaussian"),
        pytest.param(noise.PHOTONS, (500, 250, 100, 75, 50), id="shot"),
        pytest.param(noise.STRUCK, (0.01, 0.02, 0.03, 0.05, 0.07), id="impulse"),
        pytest.param(
            blur.DEFOCUS, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)), id="defocus"
        ),
        pytest.param(weather.FOG, ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)), id="fog"),
        pytest.param(digital.BRIGHTNESS, (0.05, 0.1, 0.15, 0.2, 0.3), id="brightness"),
        pytest.param(digital.CONTRAST, (0.75, 0.5, 0.4, 0.3, 0.15), id="contrast"),
        pytest.param(digital.PIXELATE, (0.95, 0.9, 0.85, 0.75, 0.65), id="pixelate"),
        pytest.param(digital.QUALITY, (80, 65, 58, 50, 40), id="jpeg"),
    ],
)
def test_severities_are_those_of_cifar_10_c(constant, published):
    """Hendrycks and Dietterich, arXiv:1903.12261, in their code for images of 32 pixels."""
    assert constant == published
