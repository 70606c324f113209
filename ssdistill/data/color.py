"""Color augmentation of a batch, with separate factors and order for every image.

All functions take float32 (B, 3, H, W) in [0, 1] (blur and solarization any number of channels);
those whose name ends in ``_`` work in place. They match torchvision's functional operations on
float images up to rounding.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

from ssdistill.data.geometry import resample
from ssdistill.errors import UserError
from ssdistill.settings import Size, height_width

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
"""Operation numbers, also the columns of ``factor_B4`` (as in torchvision's ``ColorJitter``)."""
UNTOUCHED = 4
LUMA = (0.2989, 0.587, 0.114)


def luma(x_BCN: Tensor) -> Tensor:
    """Return the gray value of each pixel, (B, N)."""
    red_BN, green_BN, blue_BN = x_BCN.unbind(1)
    gray_BN = red_BN * LUMA[0]
    return gray_BN.add_(green_BN, alpha=LUMA[1]).add_(blue_BN, alpha=LUMA[2])


def jitter_groups(order_B4: Tensor, chosen_B: Tensor) -> Tensor:
    """Return the position of hue in each image's order: 0..3, or :data:`UNTOUCHED`."""
    return torch.where(chosen_B, (order_B4 == HUE).int().argmax(dim=1), UNTOUCHED)


def jitter_(x_BCHW: Tensor, order_B4: Tensor, factor_B4: Tensor, group_B: Tensor) -> None:
    """Jitter brightness, contrast, saturation and hue in each image's own order.

    Hue is applied once to all images; the operations before and after it take up to three rounds
    each. With images sorted by group, each round works on one slice.

    Args:
        order_B4: int64, each row a permutation of the four operation numbers.
        factor_B4: float32 factors, hue in turns (-0.5 to 0.5).
        group_B: :func:`jitter_groups`, ascending.
    """
    x_BCN = x_BCHW.view(*x_BCHW.shape[:2], -1)
    starts = [0, *torch.bincount(group_B, minlength=5).cumsum(0).tolist()]
    end = starts[UNTOUCHED]
    for turn in range(3):
        rows = slice(starts[turn + 1], end)
        _blend_(x_BCN[rows], order_B4[rows, turn], factor_B4[rows])
    rotated = factor_B4[:end, HUE]
    if end and bool((rotated != 0).any()):
        rotate_hue_(x_BCN[:end], rotated)
    for turn in range(1, 4):
        rows = slice(0, starts[UNTOUCHED - turn])
        after_B1 = group_B[rows, None] + turn
        _blend_(x_BCN[rows], order_B4[rows].gather(1, after_B1)[:, 0], factor_B4[rows])


def _blend_(x_BCN: Tensor, operation_B: Tensor, factor_B4: Tensor) -> None:
    """Apply one operation other than hue to each image: f·x + (1 - f)·t, clamped.

    t is black for brightness, the mean gray for contrast, the pixel's gray for saturation.
    """
    if not len(x_BCN):
        return
    factor_B = factor_B4.gather(1, operation_B[:, None])
    rest_B = 1.0 - factor_B
    gray_BN = luma(x_BCN)
    mean_B = gray_BN.mean(dim=1, keepdim=True)
    target_BN = gray_BN.mul_(rest_B * (operation_B == SATURATION)[:, None])
    target_BN.add_(mean_B * rest_B * (operation_B == CONTRAST)[:, None])
    torch.addcmul(target_BN[:, None], x_BCN, factor_B[:, :, None], out=x_BCN)
    x_BCN.clamp_(0.0, 1.0)


def rotate_hue_(x_BCN: Tensor, turn_B: Tensor) -> None:
    """Rotate the hue by ``turn_B`` (1 is a full turn), with HSV value and saturation unchanged.

    On the hexagon of hues, with red at 0, green at 2 and blue at -2 and each channel rescaled to
    u in [0, 1] by the pixel's own minimum and maximum, the hue is ±(1 + u_g + u_b - u_r), signed
    as g - b; and a channel at distance d from the hue has u = clamp(2 - d, 0, 1). This avoids
    a case distinction between six sextants.
    """
    red_BN, green_BN, blue_BN = x_BCN.unbind(1)
    top_BN = torch.maximum(green_BN, blue_BN)
    low_BN = torch.minimum(green_BN, blue_BN)
    sum_BN = top_BN + low_BN
    torch.maximum(top_BN, red_BN, out=top_BN)
    torch.minimum(low_BN, red_BN, out=low_BN)
    chroma_BN = top_BN.sub_(low_BN)
    hue_BN = sum_BN.add_(chroma_BN).sub_(low_BN).sub_(red_BN)
    # A gray pixel has no hue: both numerator and chroma are 0.
    hue_BN.div_(chroma_BN.clamp_min(torch.finfo(torch.float32).tiny))
    hue_BN.copysign_(green_BN - blue_BN).add_(6.0 * turn_B[:, None])
    hue_BN.sub_(torch.round(hue_BN * (1.0 / 6.0)), alpha=6.0)
    for channel, position in enumerate((0.0, 2.0, -2.0)):
        # | |d| - 3 | - 1 is 2 - |d| for a distance measured either way round.
        level_BN = (hue_BN - position).abs_().sub_(3.0).abs_().sub_(1.0).clamp_(0.0, 1.0)
        torch.addcmul(low_BN, level_BN, chroma_BN, out=x_BCN[:, channel])


def grayscale_(x_BCHW: Tensor, chosen_K: Tensor) -> None:
    """Convert the images at positions ``chosen_K`` to gray."""
    x_BCN = x_BCHW.view(*x_BCHW.shape[:2], -1)
    x_BCN[chosen_K] = luma(x_BCN[chosen_K])[:, None].expand(-1, x_BCN.shape[1], -1)


def blur_kernel_size(kernel: int | None, size: Size) -> int:
    """Return ``kernel``; for None, an odd tenth of the side, at least 3 (arXiv:2002.05709).

    If the sides differ, the shorter one counts.
    """
    side = min(height_width(size))
    kernel = kernel or max(3, int(0.1 * side) | 1)
    if kernel // 2 >= side:
        height, width = height_width(size)
        raise UserError(
            f"blur_kernel={kernel} does not fit a view of {height}x{width} pixels; lower it"
        )
    return kernel


def gaussian_blur_(x_BCHW: Tensor, chosen_K: Tensor, sigma_K: Tensor, kernel: int) -> None:
    """Blur the images at positions ``chosen_K`` with their own ``sigma_K`` (pixels).

    The kernel is separable and ``kernel`` pixels wide (odd); edges are reflected.
    """
    height, width = x_BCHW.shape[-2:]
    reach = (kernel - 1) / (2.0 * math.sqrt(2.0))
    taps_T = torch.linspace(-reach, reach, kernel, device=x_BCHW.device)
    weight_KT = torch.softmax(-((taps_T / sigma_K[:, None]) ** 2), dim=1)
    matrix_KSS = {
        side: (weight_KT @ _reflection(side, kernel, x_BCHW.device)).view(-1, side, side)
        for side in {height, width}
    }
    x_BCHW[chosen_K] = resample(x_BCHW[chosen_K], matrix_KSS[height], matrix_KSS[width])


@lru_cache(maxsize=16)
def _reflection(size: int, kernel: int, device: torch.device) -> Tensor:
    """Return (kernel, size·size) of 0 and 1: the source pixel read by each tap of each output."""
    offset_T1 = torch.arange(kernel)[:, None] - kernel // 2
    source_TS = (torch.arange(size) + offset_T1).abs()
    source_TS = (size - 1) - ((size - 1) - source_TS).abs()
    reads_TSS = torch.nn.functional.one_hot(source_TS, size).to(torch.float32)
    return reads_TSS.view(kernel, size * size).to(device)


def solarize_(x_BCHW: Tensor, chosen_K: Tensor, threshold: float) -> None:
    """Invert the pixels at or above ``threshold`` in the images at positions ``chosen_K``."""
    x_KCHW = x_BCHW[chosen_K]
    x_BCHW[chosen_K] = torch.where(x_KCHW >= threshold, 1.0 - x_KCHW, x_KCHW)
