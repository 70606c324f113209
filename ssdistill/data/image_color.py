"""Color augmentation of one image on a CPU.

In :mod:`ssdistill.data.color`, every image of a batch takes the same steps, as a GPU requires. A
CPU is faster with one image at a time: its pixels stay in the cache, and steps without effect on
this image are skipped. Results agree to 1e-5.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ssdistill.data.color import (
    BRIGHTNESS,
    CONTRAST,
    HUE,
    LUMA,
    blur_kernel_size,
    solarize_,
)
from ssdistill.data.view_parameters import ViewParameters
from ssdistill.settings import Size, height_width

NEGLIGIBLE = 1e-6
"""Weight of a tap below which it, and all taps beyond it, are cut off: together they change a
pixel by less than a hundredth of a level of 255."""
FROM_SIDE = 96
"""Shorter side in pixels of the smallest images that are colored one by one; smaller ones are
faster in batches."""
_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class ImageColor:
    """The color operations of one image; None or an empty list where there is none.

    Attributes:
        jitter: operation numbers in order, each with its factor (see ``ViewParameters``).
        blur_sigma: standard deviation in pixels.
        blur_kernel: width in pixels, odd.
        solarize: values from here on are inverted.
    """

    flip: bool
    jitter: list[tuple[int, float]]
    grayscale: bool
    blur_sigma: float | None
    blur_kernel: int
    solarize: float | None


def colors_of(params: ViewParameters, channels: int, size: Size) -> list[ImageColor] | None:
    """Return the operations of each image, for views of ``size`` (side, or (height, width)).

    None if they are made in batches: small views, and those with operations on single channels.

    Raises:
        UserError: the blur kernel does not fit the view.
    """
    of_channels = (params.factor_BC2, params.dropped_B, params.noise_B)
    plain = channels == 3 and all(values is None for values in of_channels)
    if params.colored and (not plain or min(height_width(size)) < FROM_SIDE):
        return None
    kernel = blur_kernel_size(params.blur_kernel, size) if bool(params.blur_B.any()) else 1
    columns = zip(
        params.flip_B.tolist(),
        params.jitter_B.tolist(),
        params.order_B4.tolist(),
        params.factor_B4.tolist(),
        params.grayscale_B.tolist(),
        params.blur_B.tolist(),
        params.blur_sigma_B.tolist(),
        params.solarize_B.tolist(),
        strict=True,
    )
    return [
        ImageColor(
            flip,
            [(number, factor_4[number]) for number in order_4] if jitter else [],
            grayscale,
            sigma if blur else None,
            kernel,
            params.solarize_threshold if solarize else None,
        )
        for flip, jitter, order_4, factor_4, grayscale, blur, sigma, solarize in columns
    ]


def color_(crop_CHW: Tensor, drawn: ImageColor, out_CHW: Tensor) -> None:
    """Write a crop, flipped and colored, to ``out_CHW`` (float32, in [0, 1], contiguous).

    Args:
        crop_CHW: uint8, or float32 in [0, 1]; RGB, unless ``drawn`` only flips.
    """
    out_CHW.copy_(crop_CHW.flip(2) if drawn.flip else crop_CHW)
    if crop_CHW.dtype == torch.uint8:
        out_CHW.div_(255.0)
    x_CN = out_CHW.view(len(out_CHW), -1)
    for number, factor in drawn.jitter:
        _adjust_(x_CN, number, factor)
    if drawn.grayscale:
        x_CN.copy_(_luma(x_CN).expand_as(x_CN))
    if drawn.blur_sigma is not None:
        blur_(out_CHW, drawn.blur_sigma, drawn.blur_kernel)
        out_CHW.clamp_(0.0, 1.0)  # weights sum to 1 only up to rounding
    if drawn.solarize is not None:
        solarize_(out_CHW[None], torch.tensor([0]), drawn.solarize)


def _adjust_(x_CN: Tensor, number: int, factor: float) -> None:
    """Apply one operation of the jitter: f·x + (1 - f)·t, or a rotation of the hue."""
    if number == HUE:
        if factor:
            rotate_hue_(x_CN, factor)
        return
    if number == BRIGHTNESS:
        x_CN.mul_(factor)
    elif number == CONTRAST:
        mean = sum(w * value for w, value in zip(LUMA, x_CN.mean(dim=1).tolist(), strict=True))
        x_CN.mul_(factor).add_((1.0 - factor) * mean)
    else:
        torch.add(_luma(x_CN, 1.0 - factor), x_CN, alpha=factor, out=x_CN)
    # A mean of x and t weighted by a factor up to 1 lies between them.
    if factor > 1.0:
        x_CN.clamp_(0.0, 1.0)


def _luma(x_CN: Tensor, scale: float = 1.0) -> Tensor:
    """Return the gray value of each pixel, (N,), times ``scale``."""
    gray_N = x_CN[0] * (LUMA[0] * scale)
    return gray_N.add_(x_CN[1], alpha=LUMA[1] * scale).add_(x_CN[2], alpha=LUMA[2] * scale)


def rotate_hue_(x_CN: Tensor, turn: float) -> None:
    """Rotate the hue by ``turn`` (1 is a full turn); see :func:`ssdistill.data.color.rotate_hue_`.

    With the hue h in [-3, 3], red is at clamp(2 - |h|, 0, 1) between the minimum and the maximum
    of the pixel, green at clamp(|h + 1| - 1, 0, 1), and blue at clamp(|h - 1| - 1, 0, 1).
    """
    red_N, green_N, blue_N = x_CN
    top_N, low_N = torch.maximum(green_N, blue_N), torch.minimum(green_N, blue_N)
    hue_N = top_N + low_N
    torch.maximum(top_N, red_N, out=top_N)
    torch.minimum(low_N, red_N, out=low_N)
    hue_N.sub_(low_N).sub_(red_N)
    chroma_N = top_N.sub_(low_N)
    hue_N.add_(chroma_N).div_(chroma_N.clamp_min(_TINY))
    sign_N = torch.sub(green_N, blue_N)
    hue_N.copysign_(sign_N).add_(6.0 * turn)
    hue_N.sub_(torch.round(torch.mul(hue_N, 1.0 / 6.0, out=sign_N), out=sign_N), alpha=6.0)
    level_N = torch.abs(hue_N, out=sign_N).clamp_(1.0, 2.0)
    torch.addcmul(torch.add(low_N, chroma_N, alpha=2.0), level_N, chroma_N, value=-1.0, out=red_N)
    low_N.sub_(chroma_N)
    torch.add(hue_N, 1.0, out=level_N).abs_().clamp_(1.0, 2.0)
    torch.addcmul(low_N, level_N, chroma_N, out=green_N)
    hue_N.sub_(1.0).abs_().clamp_(1.0, 2.0)
    torch.addcmul(low_N, hue_N, chroma_N, out=blue_N)


def blur_(x_CHW: Tensor, sigma: float, kernel: int) -> None:
    """Blur an image by ``sigma`` pixels in place, edges reflected: a weighted sum of its shifts.

    Equals :func:`ssdistill.data.color.gaussian_blur_` to 1e-5. A matrix product, as there, takes
    work that grows with the cube of the side; this grows with the square.

    Args:
        x_CHW: float32.
        kernel: width of the blur in pixels, odd; at most twice the shorter side.
    """
    weights = [math.exp(-((offset / sigma) ** 2) / 2) for offset in range(kernel // 2 + 1)]
    least = NEGLIGIBLE * (2 * sum(weights) - weights[0])
    weights = [weight for weight in weights if weight > least]
    reach, total = len(weights) - 1, 2 * sum(weights) - weights[0]
    if not reach:
        return
    weights = [weight / total for weight in weights]
    wide_CHW = F.pad(x_CHW[None], [reach] * 4, mode="reflect")[0]
    # As one long row of pixels, so that no step is needed from row to row: shifts mix rows in the
    # border only, which is cut off.
    x_N = _shifted_sum(wide_CHW.view(-1), weights, 1)
    x_N = _shifted_sum(x_N, weights, wide_CHW.shape[2])
    x_CHW.copy_(x_N.as_strided(x_CHW.shape, wide_CHW.stride()))


def _shifted_sum(x_N: Tensor, weights: list[float], step: int) -> Tensor:
    """Return the sum of ``x_N`` shifted by multiples of ``step``, where all shifts overlap."""
    middle = (len(weights) - 1) * step
    length = len(x_N) - 2 * middle
    total_N = x_N[middle : middle + length] * weights[0]
    for shift, weight in enumerate(weights[1:], 1):
        total_N.add_(x_N.narrow(0, middle - shift * step, length), alpha=weight)
        total_N.add_(x_N.narrow(0, middle + shift * step, length), alpha=weight)
    return total_N
