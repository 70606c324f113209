"""Determine the order of the axes of an array of images."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ssdistill.data.bands import suggested
from ssdistill.errors import UserError

Layout = Literal["auto", "NHW", "NHWC", "NCHW"]
CHANNELS = (1, 3)
FLAT_COLOR = (
    "rows of {} numbers are color images of {side} x {side}, stored by plane or by pixel; set "
    "data.layout=NCHW (all red values, then green, then blue, as in CIFAR's files) or NHWC"
)


@dataclass(frozen=True)
class Arrangement:
    """The order of the axes of an array of images.

    Attributes:
        axes: of the array, after rows are reshaped if ``flat``.
        sides: height and width in pixels.
        channels: 1 or 3, or any number if ``data.channels`` is set.
        flat: whether each image is one row of numbers.
    """

    axes: Literal["NHW", "NHWC", "NCHW"]
    sides: tuple[int, int]
    channels: int
    flat: bool = False

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return images of the array as (B, H, W) gray or (B, H, W, C), as a view if possible."""
        if self.flat:
            ends = (*self.sides, self.channels)
            shape = {"NHW": self.sides, "NHWC": ends, "NCHW": (self.channels, *self.sides)}
            images = images.reshape(len(images), *shape[self.axes])
        if self.axes == "NHW":
            return images
        if self.axes == "NCHW":
            images = images.transpose(0, 2, 3, 1)
        return images[..., 0] if self.channels == 1 else images


def arrangement(
    shape: tuple[int, ...],
    dtype: np.dtype,
    layout: Layout,
    name: str,
    *,
    certain: bool = False,
    any_bands: bool = False,
) -> Arrangement:
    """Return the arrangement of an array of images, inferred from its shape if possible.

    Args:
        layout: the user's setting.
        name: of the array in messages.
        certain: whether the name of the array implies gray images or channels last, so that an
            ambiguous shape is accepted.
        any_bands: whether images may have any number of channels, on their smallest axis.

    Raises:
        UserError: the array does not hold images, or its shape is ambiguous.
    """
    if dtype.kind not in "buif" or 0 in shape or not 2 <= len(shape) <= 4:
        raise UserError(_message(shape, dtype, name, _hint(shape, dtype)))
    if any_bands and len(shape) == 4:
        result = _arrangement_of_bands(shape, layout, certain)
        if isinstance(result, str):
            raise UserError(f"{name} is {dtype} of shape {' x '.join(map(str, shape))}; {result}")
        return result
    result = (
        _flat(shape, layout) if len(shape) == 2 else _arrangement_of_axes(shape, layout, certain)
    )
    if isinstance(result, str):
        raise UserError(_message(shape, dtype, name, result))
    return result


def _arrangement_of_bands(
    shape: tuple[int, ...], layout: Layout, certain: bool
) -> Arrangement | str:
    """Return the arrangement of an array with any number of channels, or an error message."""
    if layout == "NHW":
        return "data.layout=NHW requires three axes; set data.layout=NCHW or NHWC"
    if layout == "auto":
        smallest = min(shape[1:])
        clear = shape[1:].count(smallest) == 1
        if clear and smallest in (shape[1], shape[3]):
            layout = "NCHW" if shape[1] == smallest else "NHWC"
        elif certain:
            layout = "NHWC"
        else:
            return "channels may be first or last; set data.layout=NCHW or NHWC"
    if layout == "NHWC":
        return Arrangement("NHWC", (shape[1], shape[2]), shape[3])
    return Arrangement("NCHW", (shape[2], shape[3]), shape[1])


def _arrangement_of_axes(
    shape: tuple[int, ...], layout: Layout, certain: bool
) -> Arrangement | str:
    """Return the arrangement, or an error message."""
    if len(shape) == 3:
        if layout not in ("auto", "NHW"):
            return f"data.layout={layout} requires four axes; set data.layout=NHW"
        if layout == "auto" and not certain and shape[2] in (3, 4):
            return (
                "this is one color image, or several gray images; add an axis with [None], or set "
                "data.layout=NHW"
            )
        return Arrangement("NHW", (shape[1], shape[2]), 1)
    first, last = shape[1] in CHANNELS, shape[3] in CHANNELS
    if layout == "auto" and first and last and not (certain and shape[3] == 3):
        return "channels may be first or last; set data.layout=NCHW or NHWC"
    if layout in ("auto", "NHWC") and last:
        return Arrangement("NHWC", (shape[1], shape[2]), shape[3])
    if layout in ("auto", "NCHW") and first:
        return Arrangement("NCHW", (shape[2], shape[3]), shape[1])
    if layout == "auto":
        return _hint(shape, np.dtype(np.uint8))
    return f"data.layout={layout} does not match; set auto, or save 1 or 3 channels"


def _flat(shape: tuple[int, ...], layout: Layout) -> Arrangement | str:
    numbers = shape[1]
    side = math.isqrt(numbers)
    if side * side == numbers and layout in ("auto", "NHW"):
        return Arrangement("NHW", (side, side), 1, flat=True)
    side = math.isqrt(numbers // 3)
    if 3 * side * side != numbers:
        return "rows of this length are not square images; reshape it"
    if layout == "NHWC" or layout == "NCHW":
        return Arrangement(layout, (side, side), 3, flat=True)
    return FLAT_COLOR.format(numbers, side=side)


def _message(shape: tuple[int, ...], dtype: np.dtype, name: str, problem: str) -> str:
    return (
        f"{name} must be a non-empty array of N x H x W, N x H x W x 3 or N x 3 x H x W, uint8 or "
        f"other real numbers (see data.window); it is {dtype} of shape "
        f"{' x '.join(map(str, shape)) or '()'}; {problem}"
    )


def _hint(shape: tuple[int, ...], dtype: np.dtype) -> str:
    if 0 in shape:
        return "add images"
    if dtype.kind not in "buif":
        return "save numbers"
    if len(shape) == 4 and shape[3] == 4:
        return "keep three channels with [..., :3], or set data.channels=[0, 1, 2, 3]"
    if len(shape) == 4 and shape[1] == 4:
        return "keep three channels with [:, :3], or set data.channels=[0, 1, 2, 3]"
    if len(shape) == 4:
        return f"reshape it, or set data.channels={suggested(min(shape[1], shape[3]))}"
    return "reshape it"
