"""Sizes of views: a square's side, or height and width, in pixels."""

from collections.abc import Iterable

from torch import Tensor

from ssdistill.errors import UserError
from ssdistill.settings import Size, as_size, height_width, size_text


def check_size(size: Size) -> None:
    """Raise UserError if a side of a view is below 1 pixel."""
    if min(height_width(size)) < 1:
        raise UserError(f"size={size_text(size)}: a view has at least one pixel; raise it")


def area(size: Size) -> int:
    """Return the number of pixels of a view."""
    height, width = height_width(size)
    return height * width


def largest(sizes: Iterable[Size]) -> Size:
    """Return the size with the most pixels; the first of several."""
    return max(sizes, key=area)


def fits_into(size: Size, whole: Size) -> bool:
    """Return whether a size is neither taller nor wider than another."""
    (height, width), (whole_height, whole_width) = height_width(size), height_width(whole)
    return height <= whole_height and width <= whole_width


def size_of(views_BCHW: Tensor) -> Size:
    """Return the size of a batch of views."""
    return as_size(*views_BCHW.shape[-2:])
