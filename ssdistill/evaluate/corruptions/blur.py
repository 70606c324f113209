"""Blurs. Lengths grow with the side of the image; those of glass with its root."""

import math

import torch
from torch import Tensor

from ssdistill.evaluate.corruptions.draws import Draws
from ssdistill.evaluate.corruptions.filters import (
    disk_kernel,
    filter_2d,
    gaussian_rows,
    resample,
    trail,
    zoom_rows,
)

DEFOCUS = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1))
"""Radius of the disk and sigma of its edge, pixels."""
GLASS = ((0.05, 1, 0.5), (0.25, 1, 0.75), (0.4, 1, 1.0), (0.25, 1, 2.0), (0.4, 1, 3.0))
"""Sigma, how far pixels change places, and how often each does so.

The paper's rounds are 1, 1, 1, 2, 2: its second severity hardly differs from its first, and its
third and fifth, which blur more what was mixed as much, are nearer to the image than those
before them."""
MOTION = ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.25), (9, 2.5))
"""Radius and sigma. The paper's fourth sigma is 2.0, which is its third over again."""
ZOOM = (0.05, 0.10, 0.15, 0.20, 0.25)
"""Largest enlargement; the steps in between are hundredths."""


def defocus_blur(x_BCHW: Tensor, severity: int, scale: float, draws: Draws) -> Tensor:
    """Defocus blur: mean over a disk with a soft edge."""
    radius, sigma = DEFOCUS[severity - 1]
    return filter_2d(x_BCHW, disk_kernel(radius * scale, sigma * scale))


def glass_blur(x_BCHW: Tensor, severity: int, scale: float, draws: Draws) -> Tensor:
    """Glass blur: swap pixels with nearby ones, between two Gaussian blurs."""
    sigma, reach, rounds = GLASS[severity - 1]
    height, width = x_BCHW.shape[2:]
    blurs = [gaussian_rows(size, sigma * scale**0.5) for size in (height, width)]
    source_BN = _shuffled(height, width, round(reach * scale**0.5), rounds, draws)
    before_BCHW = resample(x_BCHW, *blurs).round_()
    mixed_BCN = before_BCHW.flatten(2).gather(2, source_BN[:, None].expand(-1, 3, -1))
    return resample(mixed_BCN.view_as(x_BCHW), *blurs)


def _shuffled(height: int, width: int, reach: int, rounds: float, draws: Draws) -> Tensor:
    """(B, H·W) int64: whence each pixel comes after every pixel has swapped with a near one.

    A raster scan would do one pixel at a time. Here those that are too far apart to meet swap
    at once, which takes (2 · reach + 1)^2 turns whatever the size of the image.

    Args:
        rounds: swaps per pixel; of a fraction, so many pixels take part.
    """
    span = 2 * reach + 1
    source_BN = torch.arange(height * width, device=draws.index_B.device)
    source_BN = source_BN.repeat(len(draws.index_B), 1)
    for turn in range(math.ceil(rounds)):
        down_BHW = draws.below(3 * turn, span, height, width) - reach
        right_BHW = draws.below(3 * turn + 1, span, height, width) - reach
        taking_BHW = draws.uniform(3 * turn + 2, 0, 1, height, width) < rounds - turn
        move_BN = ((down_BHW * width + right_BHW) * taking_BHW).flatten(1)
        for top in range(reach, reach + span):
            for left in range(reach, reach + span):
                rows = torch.arange(top, height - reach, span, device=source_BN.device)
                columns = torch.arange(left, width - reach, span, device=source_BN.device)
                here_P = (rows[:, None] * width + columns).flatten()
                there_BP = here_P + move_BN[:, here_P]
                mine_BP, theirs_BP = source_BN[:, here_P], source_BN.gather(1, there_BP)
                source_BN.scatter_(1, there_BP, mine_BP)
                source_BN[:, here_P] = theirs_BP
    return source_BN


def motion_blur(x_BCHW: Tensor, severity: int, scale: float, draws: Draws) -> Tensor:
    """Motion blur along a random angle of at most 45 degrees per image."""
    radius, sigma = MOTION[severity - 1]
    angle_B = draws.uniform(0, -math.pi / 4, math.pi / 4, 1)[:, 0]
    return trail(x_BCHW, angle_B, sigma * scale, round(2 * radius * scale))


def zoom_blur(x_BCHW: Tensor, severity: int, scale: float, draws: Draws) -> Tensor:
    """Zoom blur: mean over the image and its enlargements in steps of 0.01."""
    steps = round(100 * ZOOM[severity - 1])
    total_BCHW = 2.0 * x_BCHW.double()
    for step in range(1, steps + 1):
        rows = [zoom_rows(size, 1 + step / 100) for size in x_BCHW.shape[2:]]
        total_BCHW += resample(x_BCHW, *rows)
    return total_BCHW.div_(steps + 2)
