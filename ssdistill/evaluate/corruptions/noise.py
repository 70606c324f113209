"""Noise of every pixel and channel by itself. Its size grows with the root of the side."""

from functools import lru_cache

import torch
from torch import Tensor

from ssdistill.evaluate.corruptions.draws import WORDS, Draws

DEVIATION = (0.04, 0.06, 0.08, 0.09, 0.10)
"""Of Gaussian noise, white being 1."""
PHOTONS = (500.0, 250.0, 100.0, 75.0, 50.0)
"""Mean count that makes white."""
STRUCK = (0.01, 0.02, 0.03, 0.05, 0.07)
"""Fraction of values that impulse noise makes black or white."""


def gaussian_noise(x_BCHW: Tensor, severity: int, scale: float, draws: Draws) -> Tensor:
    """Normal noise of the same size everywhere."""
    deviation = 255 * DEVIATION[severity - 1] * scale**0.5
    return draws.normal(0, *x_BCHW.shape[1:]).mul_(deviation).add_(x_BCHW)


def shot_noise(x_BCHW: Tensor, severity: int, scale: float, draws: Draws) -> Tensor:
    """Poisson counts whose mean is the pixel: its variance is pixel / photons."""
    table_W = _poisson(PHOTONS[severity - 1] / scale).to(x_BCHW.device)
    words_BCHW = draws.words(0, *x_BCHW.shape[1:]).long()
    return table_W[x_BCHW.long().mul_(WORDS).add_(words_BCHW)]


def impulse_noise(x_BCHW: Tensor, severity: int, scale: float, draws: Draws) -> Tensor:
    """Values made black or white, as many of each."""
    struck = min(1.0, STRUCK[severity - 1] * scale**0.5) * WORDS
    words_BCHW = draws.words(0, *x_BCHW.shape[1:])
    # Odd and even words: who is struck stays so, in the same way, as more are.
    white_BCHW = (words_BCHW & 1) * 255
    return torch.where(words_BCHW < struck, white_BCHW.to(x_BCHW.dtype), x_BCHW)


@lru_cache(maxsize=2)
def _poisson(photons: float) -> Tensor:
    """(256 · 65536,) uint8: the noisy value by pixel value and random word."""
    mean_V1 = torch.arange(256, dtype=torch.float64)[:, None] * (photons / 255)
    count_K = torch.arange(int(photons + 12 * photons**0.5) + 20, dtype=torch.float64)
    log_VK = torch.special.xlogy(count_K, mean_V1) - mean_V1 - torch.lgamma(count_K + 1)
    # As many words give a count as its probability has parts in 65 536, sums being rounded.
    last_VK = torch.floor(log_VK.exp().cumsum(1) * WORDS + 0.5).clamp_(max=WORDS).long()
    last_VK[:, -1] = WORDS
    words_VK = last_VK.diff(dim=1, prepend=last_VK.new_zeros(256, 1))
    value_K = torch.round(count_K * (255 / photons)).clamp_(max=255).to(torch.uint8)
    return value_K.repeat(256).repeat_interleave(words_VK.flatten())
