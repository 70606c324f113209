"""Blurring and resampling with exact sums, whatever the order of summation.

Weights are whole multiples of 2^-16 and pixels whole numbers, so every product and partial sum
is a whole number that double precision holds. An image is therefore filtered to the same bits
in a batch of one and of a thousand.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

ONE = 1 << 16
"""What the weights of a filter add up to."""


def whole(weight_RK: Tensor) -> Tensor:
    """Weights (rows, taps) as whole numbers that add up to :data:`ONE` in every row, float64.

    What rounding leaves over goes to the largest weight.
    """
    share_RK = weight_RK.double() / weight_RK.double().sum(1, keepdim=True)
    whole_RK = torch.round(share_RK * ONE)
    rest_R1 = ONE - whole_RK.sum(1, keepdim=True)
    return whole_RK.scatter_add(1, whole_RK.argmax(1, keepdim=True), rest_R1)


def resample(x_BCHW: Tensor, rows_TH: Tensor, columns_TW: Tensor) -> Tensor:
    """``rows · x · columnsᵀ`` of every channel, in the units of ``x``: (B, C, T, T') float64.

    Args:
        x_BCHW: whole numbers below 2^20.
        rows_TH, columns_TW: as :func:`whole` makes them.
    """
    wide_BCHT = x_BCHW.double() @ columns_TW.to(x_BCHW.device).mT
    return (rows_TH.to(x_BCHW.device) @ wide_BCHT) / ONE**2


@lru_cache(maxsize=64)
def gaussian_rows(size: int, sigma: float) -> Tensor:
    """(size, size) Gaussian blur along one axis, cut at four sigma, edges reflected."""
    reach = min(max(1, math.ceil(4 * sigma)), size - 1)
    tap_T = torch.arange(-reach, reach + 1)
    weight_T = torch.exp(-0.5 * (tap_T / max(sigma, 1e-3)) ** 2).double()
    source_ST = reflected(torch.arange(size)[:, None] + tap_T, size)
    rows_SS = torch.zeros(size, size, dtype=torch.float64)
    return whole(rows_SS.scatter_add_(1, source_ST, weight_T.expand(size, -1).contiguous()))


@lru_cache(maxsize=256)
def zoom_rows(size: int, factor: float) -> Tensor:
    """(size, size) enlargement about the center by ``factor`` >= 1, linear."""
    middle = (size - 1) / 2
    position_S = (torch.arange(size, dtype=torch.float64) - middle) / factor + middle
    return _linear_rows(position_S, size)


@lru_cache(maxsize=64)
def cloud_rows(size: int, cells: int) -> Tensor:
    """(size, cells) smooth interpolation of a grid of ``cells`` points that wraps around."""
    position_S = (torch.arange(size, dtype=torch.float64) + 0.5) * cells / size
    left_S = position_S.floor()
    share_S = position_S - left_S
    share_S = share_S * share_S * (3 - 2 * share_S)
    rows_SC = torch.zeros(size, cells, dtype=torch.float64)
    rows_SC.scatter_add_(1, left_S.long()[:, None] % cells, (1 - share_S)[:, None])
    rows_SC.scatter_add_(1, (left_S.long()[:, None] + 1) % cells, share_S[:, None])
    return whole(rows_SC)


@lru_cache(maxsize=64)
def pixelate_rows(size: int, target: int) -> Tensor:
    """(size, size) every pixel the mean of its part, of ``target`` parts of whole pixels."""
    part_S = ((torch.arange(size, dtype=torch.float64) + 0.5) * target / size).long()
    return whole((part_S[:, None] == part_S).double())


@lru_cache(maxsize=64)
def disk_kernel(radius: float, sigma: float) -> Tensor:
    """(K, K) weights of a disk whose edge is softened by a Gaussian of 3 x 3 or more taps."""
    soft = max(1, round(3 * sigma)) if radius > 8 else 1
    reach = int(radius) + soft
    tap_K = torch.arange(-reach, reach + 1, dtype=torch.float64)
    disk_KK = (tap_K[:, None] ** 2 + tap_K**2 <= radius**2).double()
    gauss_T = torch.exp(-0.5 * (torch.arange(-soft, soft + 1) / sigma) ** 2).double()
    gauss_TT = gauss_T[:, None] * gauss_T
    soft_KK = functional.conv2d(disk_KK[None, None], gauss_TT[None, None], padding=soft)[0, 0]
    return whole(soft_KK.reshape(1, -1)).view(soft_KK.shape)


def filter_2d(x_BCHW: Tensor, kernel_KK: Tensor) -> Tensor:
    """Every channel under one kernel, edges reflected: float32, in the units of ``x``.

    Args:
        x_BCHW: whole numbers up to 255: single precision holds their sums.
        kernel_KK: as :func:`whole` makes them.
    """
    _, channels, height, width = x_BCHW.shape
    reach = kernel_KK.shape[0] // 2
    x_NKHW = x_BCHW.reshape(-1, 1, height, width).float()
    x_NKHW = functional.pad(x_NKHW, (reach,) * 4, mode="reflect")
    weight = kernel_KK.to(x_NKHW)[None, None]
    # A graphics card would round to ten bits by itself.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        return functional.conv2d(x_NKHW, weight).view(-1, channels, height, width) / ONE


def trail(
    x_BCHW: Tensor, angle_B: Tensor, sigma: float, longest: int, both: bool = False
) -> Tensor:
    """Smear every image along its own angle: float32, in the units of ``x``.

    The weights are a Gaussian that is cut in half, as in ImageMagick's motion blur, and read at
    the nearest pixels; beyond the edge the outermost pixel goes on.

    Args:
        x_BCHW: whole numbers up to 255.
        angle_B: radians.
        sigma: of the Gaussian in pixels, ``longest`` pixels at most.
        both: the whole Gaussian.
    """
    reach = min(longest, math.ceil(4 * sigma))
    tap_T = torch.arange(-reach if both else 0, reach + 1, dtype=torch.float64)
    weight_T = whole(torch.exp(-0.5 * (tap_T / sigma) ** 2)[None])[0]
    batch, channels, height, width = x_BCHW.shape
    x_BCN = x_BCHW.reshape(batch, channels, -1)
    row_H1 = torch.arange(height, device=x_BCHW.device)[:, None]
    column_W = torch.arange(width, device=x_BCHW.device)
    out_BCN = torch.zeros_like(x_BCN, dtype=torch.float32)
    for tap, weight in zip(tap_T.tolist(), weight_T.tolist(), strict=True):
        down_B11 = torch.round(angle_B.sin() * tap).long()[:, None, None]
        right_B11 = torch.round(angle_B.cos() * tap).long()[:, None, None]
        row_BH1 = (row_H1 + down_B11).clamp_(0, height - 1)
        column_B1W = (column_W + right_B11).clamp_(0, width - 1)
        source_BN = (row_BH1 * width + column_B1W).view(batch, 1, -1)
        moved_BCN = x_BCN.gather(2, source_BN.expand(-1, channels, -1)).float()
        out_BCN += moved_BCN.mul_(weight)
    return out_BCN.view_as(x_BCHW).div_(ONE)


def reflected(position: Tensor, size: int) -> Tensor:
    """Positions outside 0 … size - 1 mirrored at the outermost pixels' middles."""
    period = 2 * (size - 1)
    folded = position % period
    return torch.minimum(folded, period - folded)


def _linear_rows(position_S: Tensor, size: int) -> Tensor:
    left_S = position_S.floor().clamp(0, size - 2)
    share_S = position_S - left_S
    rows_SS = torch.zeros(len(position_S), size, dtype=torch.float64)
    rows_SS.scatter_(1, left_S.long()[:, None], (1 - share_S)[:, None])
    rows_SS.scatter_(1, left_S.long()[:, None] + 1, share_S[:, None])
    return whole(rows_SS)
