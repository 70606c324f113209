"""Which axis of an array of images is which."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ssdistill.data.bands import suggested
from ssdistill.errors import UserError

Layout = Literal["auto", "NHW", "NHWC", "NCHW"]
CHANNELS = (1, 3)
FLAT_COLOR = (
    "rows of {} numbers are color images of {side} x {side}, by plane or by pixel; set "
    "data.layout=NCHW (red, green and blue one after the other, as CIFAR's own files) or NHWC"
)


@dataclass(frozen=True)
class Arrangement:
    """Where height, width and channels of an array of images are.

    Attributes:
        axes: of the array, or of what its rows become.
        sides: height and width, pixels.
        channels: 1 or 3, or any number where ``data.channels`` is set.
        flat: each image is one row of numbers.
    """

    axes: Literal["NHW", "NHWC", "NCHW"]
    sides: tuple[int, int]
    channels: int
    flat: bool = False

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return images of the array as (B, H, W) gray or (B, H, W, C); a view where it can be."""
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
    """Return the arrangement of an array of images, decided by its shape where it can be.

    Args:
        layout: what the user says of the axes.
        name: of the array in messages.
        certain: the name of the array says that it holds images with the channels last, or gray
            ones, so that a shape that could be read in another way is not refused.
        any_bands: images may have any number of channels; their axis is the smallest one.

    Raises:
        UserError: no images, or a shape that two layouts suit.
    """
    if dtype.kind not in "buif" or 0 in shape or not 2 <= len(shape) <= 4:
        raise UserError(_refused(shape, dtype, name, _hint(shape, dtype)))
    if any_bands and len(shape) == 4:
        found = _of_any_bands(shape, layout, certain)
        if isinstance(found, str):
            raise UserError(f"{name} is {dtype} of {' x '.join(map(str, shape))}; {found}")
        return found
    found = _flat(shape, layout) if len(shape) == 2 else _of_axes(shape, layout, certain)
    if isinstance(found, str):
        raise UserError(_refused(shape, dtype, name, found))
    return found


def _of_any_bands(shape: tuple[int, ...], layout: Layout, certain: bool) -> Arrangement | str:
    """Return the arrangement of an array with any number of channels, or what is wrong."""
    if layout == "NHW":
        return "data.layout=NHW has three axes; set data.layout=NCHW or NHWC"
    if layout == "auto":
        smallest = min(shape[1:])
        clear = shape[1:].count(smallest) == 1
        if clear and smallest in (shape[1], shape[3]):
            layout = "NCHW" if shape[1] == smallest else "NHWC"
        elif certain:
            layout = "NHWC"
        else:
            return "the channels may come first or last; set data.layout=NCHW or NHWC"
    if layout == "NHWC":
        return Arrangement("NHWC", (shape[1], shape[2]), shape[3])
    return Arrangement("NCHW", (shape[2], shape[3]), shape[1])


def _of_axes(shape: tuple[int, ...], layout: Layout, certain: bool) -> Arrangement | str:
    """Return the arrangement, or what is wrong."""
    if len(shape) == 3:
        if layout not in ("auto", "NHW"):
            return f"data.layout={layout} has four axes; set data.layout=NHW"
        if layout == "auto" and not certain and shape[2] in (3, 4):
            return (
                "this is one color image, or gray images; add an axis with [None], or set "
                "data.layout=NHW"
            )
        return Arrangement("NHW", (shape[1], shape[2]), 1)
    first, last = shape[1] in CHANNELS, shape[3] in CHANNELS
    if layout == "auto" and first and last and not (certain and shape[3] == 3):
        return "the channels may come first or last; set data.layout=NCHW or NHWC"
    if layout in ("auto", "NHWC") and last:
        return Arrangement("NHWC", (shape[1], shape[2]), shape[3])
    if layout in ("auto", "NCHW") and first:
        return Arrangement("NCHW", (shape[2], shape[3]), shape[1])
    if layout == "auto":
        return _hint(shape, np.dtype(np.uint8))
    return f"data.layout={layout} does not fit; 1 or 3 channels are read"


def _flat(shape: tuple[int, ...], layout: Layout) -> Arrangement | str:
    numbers = shape[1]
    side = math.isqrt(numbers)
    if side * side == numbers and layout in ("auto", "NHW"):
        return Arrangement("NHW", (side, side), 1, flat=True)
    side = math.isqrt(numbers // 3)
    if 3 * side * side != numbers:
        return "rows of so many numbers are no square images; reshape it"
    if layout == "NHWC" or layout == "NCHW":
        return Arrangement(layout, (side, side), 3, flat=True)
    return FLAT_COLOR.format(numbers, side=side)


def _refused(shape: tuple[int, ...], dtype: np.dtype, name: str, why: str) -> str:
    return (
        f"{name} must be uint8 (or other real numbers, see data.window) of N x H x W, "
        f"N x H x W x 3 or N x 3 x H x W, and not empty; it is {dtype} of "
        f"{' x '.join(map(str, shape)) or 'no shape'}; {why}"
    )


def _hint(shape: tuple[int, ...], dtype: np.dtype) -> str:
    if 0 in shape:
        return "it holds nothing"
    if dtype.kind not in "buif":
        return "save numbers"
    if len(shape) == 4 and shape[3] == 4:
        return "keep three channels with [..., :3], or set data.channels=[0, 1, 2, 3]"
    if len(shape) == 4 and shape[1] == 4:
        return "keep three channels with [:, :3], or set data.channels=[0, 1, 2, 3]"
    if len(shape) == 4:
        return f"reshape it, or set data.channels={suggested(min(shape[1], shape[3]))}"
    return "reshape it"
