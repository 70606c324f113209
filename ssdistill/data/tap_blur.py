"""Gaussian blur of large views on a CPU, tap by tap.

A matrix product, as in :func:`ssdistill.data.color.gaussian_blur_`, is fastest for small views and
on a GPU; its work grows with the cube of the side. Here it grows with the square, and with each
image's own standard deviation: at 224 pixels it takes a third of the time.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

NEGLIGIBLE = 1e-6
"""Weight of a tap below which it, and all taps beyond it, are left out: together they change a
pixel by less than a hundredth of a level of 255."""


def blur_by_taps_(x_BCHW: Tensor, chosen_K: Tensor, sigma_K: Tensor, kernel: int) -> None:
    """Blur the images at positions ``chosen_K`` with their own ``sigma_K`` (pixels), in place.

    Equals :func:`ssdistill.data.color.gaussian_blur_` to 1e-5.

    Args:
        x_BCHW: float32.
        kernel: width of the blur in pixels, odd; at most twice the shorter side.
    """
    offset_T = torch.arange(kernel // 2 + 1, dtype=torch.float32)
    for chosen, sigma in zip(chosen_K.tolist(), sigma_K.tolist(), strict=True):
        weight_T = torch.exp(-((offset_T / sigma) ** 2) / 2)
        weight_T /= 2 * weight_T.sum() - weight_T[0]
        taps = [weight for weight in weight_T.tolist() if weight > NEGLIGIBLE]
        total = math.fsum(taps) * 2 - taps[0]
        taps = [weight / total for weight in taps]
        if len(taps) > 1:
            x_CHW = x_BCHW[chosen]
            _weighted_sum(_weighted_sum(x_CHW, taps, 1), taps, 2, out_CHW=x_CHW)


def _weighted_sum(
    x_CHW: Tensor, taps: list[float], dim: int, out_CHW: Tensor | None = None
) -> Tensor:
    """Sum an image shifted along an axis by up to ``len(taps) - 1`` pixels, edges reflected."""
    reach, length = len(taps) - 1, x_CHW.shape[dim]
    border = (reach, reach, 0, 0) if dim == 2 else (0, 0, reach, reach)
    wide = F.pad(x_CHW[None], border, mode="reflect")[0]
    total = torch.mul(wide.narrow(dim, reach, length), taps[0], out=out_CHW)
    for shift, weight in enumerate(taps[1:], 1):
        total.add_(wide.narrow(dim, reach - shift, length), alpha=weight)
        total.add_(wide.narrow(dim, reach + shift, length), alpha=weight)
    return total
