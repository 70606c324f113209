"""Weather. Crystals and clouds grow with the side of the image, flakes with its root."""

import math

import torch
from torch import Tensor

from ssdistill.evaluate.corruptions.draws import Draws
from ssdistill.evaluate.corruptions.filters import (
    cloud_rows,
    gaussian_rows,
    resample,
    trail,
    zoom_rows,
)

SNOW = (
    (0.1, 0.2, 1.0, 0.6, 8, 3.0, 0.95),
    (0.1, 0.2, 1.0, 0.5, 10, 4.0, 0.9),
    (0.15, 0.3, 1.75, 0.5, 10, 4.0, 0.9),
    (0.25, 0.3, 2.25, 0.6, 12, 6.0, 0.85),
    (0.3, 0.3, 1.25, 0.65, 14, 12.0, 0.8),
)
"""Mean and deviation of the noise, its enlargement, the level where flakes begin, radius and
sigma of their fall, and the fraction of the image that is not whitened. The paper's third level
is 0.55, which snows no more than its second severity does."""
FROST = ((1.0, 0.2), (1.0, 0.3), (0.95, 0.4), (0.9, 0.5), (0.85, 0.6))
"""Weight of the image and of the ice. The paper's last three, 0.9, 0.85 and 0.75 with 0.4, 0.4
and 0.45, dim the image by about what the ice adds, so that it is less and less changed."""
FOG = ((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75))
"""Thickness, and by how much the amplitude falls at each halving of size, squared."""
GRAY = (0.299, 0.587, 0.114)
ICE = (0.86, 0.94, 1.0)
"""Color of frost."""


def snow(x_BCHW: Tensor, severity: int, scale: float, draws: Draws) -> Tensor:
    """Add falling snowflakes to a whitened image."""
    mean, deviation, zoom, level, radius, sigma, share = SNOW[severity - 1]
    height, width = x_BCHW.shape[2:]
    noise_B1HW = draws.normal(0, 1, height, width).double().mul_(deviation).add_(mean)
    rows = [zoom_rows(size, zoom) for size in (height, width)]
    flakes_B1HW = resample((noise_B1HW * 4096).round_(), *rows) / 4096
    flakes_B1HW = flakes_B1HW.masked_fill_(flakes_B1HW < level, 0).clamp_(0, 1)
    angle_B = draws.uniform(1, -0.75 * math.pi, -0.25 * math.pi, 1)[:, 0]
    # Flakes grow once they are flakes: their middles alone would pass the level afterwards.
    rows = [zoom_rows(size, scale**0.5) for size in (height, width)]
    flakes_B1HW = resample((flakes_B1HW * 255).round_(), *rows).round_().to(torch.uint8)
    flakes_B1HW = trail(flakes_B1HW, angle_B, sigma, 2 * radius)
    red, green, blue = x_BCHW.double().unbind(1)
    gray_B1HW = (red * GRAY[0] + green * GRAY[1] + blue * GRAY[2])[:, None]
    white_BCHW = torch.maximum(x_BCHW.double(), gray_B1HW * 1.5 + 127.5)
    # The layer is laid over itself upside down: flakes fall from both sides.
    return x_BCHW * share + white_BCHW * (1 - share) + flakes_B1HW + flakes_B1HW.flip(2, 3)


def frost(x_BCHW: Tensor, severity: int, scale: float, draws: Draws) -> Tensor:
    """Add frost: needles in three directions 60 degrees apart, of varying density.

    The paper crops photographs of frost; these crystals are drawn.
    """
    share, ice = FROST[severity - 1]
    frost_B1HW = _ice(x_BCHW.shape[2], x_BCHW.shape[3], scale, draws)
    color_C11 = torch.tensor(ICE, dtype=torch.float64, device=x_BCHW.device)[:, None, None]
    return x_BCHW * share + frost_B1HW * color_C11 * (255 * ice)


def _ice(height: int, width: int, scale: float, draws: Draws) -> Tensor:
    """(B, 1, H, W) float64 between 0 and 1."""
    cloud_B1HW = _clouds(height, width, 1.4, draws, first=4)
    angle_B = draws.uniform(0, 0, math.pi / 3, 1)[:, 0]
    words_B1HW, share = draws.words(1, 1, height, width), round(5900 / scale**2)
    needles_B1HW = torch.zeros_like(cloud_B1HW)
    for turn in range(3):
        seeds_B1HW = (words_B1HW // share == turn).to(torch.uint8) * 255
        streak_B1HW = trail(
            seeds_B1HW, angle_B + turn * math.pi / 3, 2.0 * scale, round(6 * scale), both=True
        )
        needles_B1HW = torch.maximum(needles_B1HW, streak_B1HW.double())
    if scale > 1:  # needles of one pixel would be hairs there
        rows = [gaussian_rows(size, 0.3 * scale) for size in (height, width)]
        needles_B1HW = resample((needles_B1HW * 4096).round_(), *rows) / 4096
    # A needle's middle weighs a fifth of its seed: one alone already shines.
    needles_B1HW = (needles_B1HW / (80 / (scale * max(1.0, 0.75 * scale)))).clamp_(0, 1)
    return (0.15 + 0.35 * cloud_B1HW + needles_B1HW * (0.15 + 0.6 * cloud_B1HW)).clamp_(0, 1)


def fog(x_BCHW: Tensor, severity: int, scale: float, draws: Draws) -> Tensor:
    """Add fog and rescale so that the brightest value stays."""
    thickness, decay = FOG[severity - 1]
    brightest_B111 = x_BCHW.double().amax((1, 2, 3), keepdim=True)
    height, width = x_BCHW.shape[2:]
    clouds_B1HW = _clouds(height, width, decay**2, draws) * (255 * thickness)
    dimmed_B111 = brightest_B111 / (brightest_B111 + 255 * thickness)
    return (x_BCHW + clouds_B1HW) * dimmed_B111


def _clouds(height: int, width: int, decay: float, draws: Draws, first: int = 0) -> Tensor:
    """(B, 1, H, W) float64 from 0 to 1: noise at every size, halving, each ``decay`` weaker.

    As diamond-square does it (the paper's plasma fractal), but as a sum over the sizes.
    """
    total_B1HW, octave, cells = 0.0, 0, 2
    while True:
        grid_B1CC = draws.words(first + octave, 1, cells, cells)
        rows = [cloud_rows(size, cells) for size in (height, width)]
        total_B1HW = total_B1HW + resample(grid_B1CC, *rows) * decay**-octave
        if cells >= min(height, width):
            break
        octave, cells = octave + 1, 2 * cells
    total_B1HW = total_B1HW - total_B1HW.amin((2, 3), keepdim=True)
    return total_B1HW / total_B1HW.amax((2, 3), keepdim=True).clamp_min(1.0)
