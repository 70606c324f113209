"""Augment images whose channels are not colors, each with its own brightness and contrast.

All functions work on float32 (B, C, N) in [0, 1], N pixels, in place where the name ends in ``_``.
All operations are relative to the values of a channel, whatever its range.
"""

import math

import torch
from torch import Tensor

from ssdistill.data.color import BRIGHTNESS, CONTRAST
from ssdistill.data.counter_rng import random_bits

_NOISE = 0x6E6F697365
"""Separates these draws from others."""
_DIGITS = 24
_MASK = (1 << _DIGITS) - 1
_NUMBERS_ON_CPU, _NUMBERS = 1 << 16, 1 << 24
"""Random numbers per chunk; on a CPU few enough for its cache."""


def jitter_channels_(x_BCN: Tensor, order_B4: Tensor, factor_BC2: Tensor) -> None:
    """Jitter brightness and contrast of each channel, in each image's own order.

    Brightness is f·x, contrast f·x + (1 - f)·mean with the mean of the channel.

    Args:
        order_B4: as of :class:`~ssdistill.data.view_parameters.ViewParameters`; only the
            order of these two is used.
        factor_BC2: float32 brightness and contrast factor of each channel.
    """
    if not len(x_BCN):
        return
    place_B2 = torch.stack([(order_B4 == k).int().argmax(1) for k in (BRIGHTNESS, CONTRAST)], dim=1)
    first_B = place_B2.argmin(1)
    for operation_B in (first_B, 1 - first_B):
        factor_BC1 = factor_BC2.gather(2, operation_B[:, None, None].expand(-1, x_BCN.shape[1], 1))
        rest_BC1 = (1.0 - factor_BC1) * (operation_B == CONTRAST)[:, None, None]
        mean_BC1 = x_BCN.mean(dim=2, keepdim=True)
        torch.addcmul(mean_BC1 * rest_BC1, x_BCN, factor_BC1, out=x_BCN)
        x_BCN.clamp_(0.0, 1.0)


def drop_channel_(x_BCN: Tensor, dropped_B: Tensor) -> None:
    """Replace one channel of each image by its mean; a negative number means none."""
    image_K = (dropped_B >= 0).nonzero()[:, 0]
    channel_K = dropped_B[image_K]
    x_BCN[image_K, channel_K] = (
        x_BCN[image_K, channel_K].mean(dim=1, keepdim=True).expand(-1, x_BCN.shape[2])
    )


def add_noise_(x_BCN: Tensor, noise_B: Tensor, key_B: Tensor) -> None:
    """Add Gaussian noise, determined by ``key_B``, and clamp to [0, 1].

    Args:
        noise_B: standard deviation of the noise of each image, as a multiple of that of the
            channel, so that channels of narrow range get little noise; 0 for no noise.
        key_B: int64 seeds of the noise of each image.
    """
    _, channels, pixels = x_BCN.shape
    limit = _NUMBERS_ON_CPU if x_BCN.device.type == "cpu" else _NUMBERS
    noisy_N = (noise_B > 0).nonzero()[:, 0]
    if not len(noisy_N):
        return
    for chosen_K in noisy_N.split(max(1, limit // (channels * pixels))):
        x_KCN = x_BCN[chosen_K]
        scale_KC1 = x_KCN.std(dim=2, correction=0, keepdim=True) * noise_B[chosen_K, None, None]
        normal_KCN = _normal(key_B[chosen_K], channels * pixels).reshape(x_KCN.shape)
        x_BCN[chosen_K] = x_KCN.addcmul_(normal_KCN, scale_KC1).clamp_(0.0, 1.0)


def _normal(key_K: Tensor, count: int) -> Tensor:
    """Return standard normal numbers, (K, count) float32, by the Box-Muller method.

    They are the same on every device up to rounding.
    """
    bits_KH = random_bits(_NOISE, 0, key_K, 0, -(-count // 2))
    first_KH, second_KH = (
        ((bits_KH >> shift) & _MASK).to(torch.float32).mul_(2.0**-_DIGITS) for shift in (40, 16)
    )
    # 1 - u is in (0, 1], where the logarithm is finite.
    radius_KH = first_KH.neg_().add_(1.0).log_().mul_(-2.0).sqrt_()
    angle_KH = second_KH.mul_(2.0 * math.pi)
    return torch.cat([radius_KH * angle_KH.cos(), radius_KH * angle_KH.sin()], dim=1)[:, :count]
