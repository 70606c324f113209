"""Check the arguments of this package's functions before anything is opened."""

import math
import operator
from collections.abc import Sequence
from typing import Any

from ssdistill.data.settings import LARGEST_SIDE
from ssdistill.errors import UserError, shortened
from ssdistill.settings import Size, as_size


def check_image_size(image_size: Any, name: str = "image_size") -> Size | None:
    """Return ``image_size`` if it is the side of an image, or height and width.

    Args:
        name: of the argument, in messages.

    Raises:
        UserError: not one or two whole numbers of pixels, from 1 to :data:`LARGEST_SIDE`.
    """
    if image_size is None:
        return None
    pair = isinstance(image_size, tuple | list) and len(image_size) == 2
    sides: tuple[Any, ...] = tuple(image_size) if pair else (image_size, image_size)
    try:
        fits = all(not isinstance(s, bool) and 0 < operator.index(s) <= LARGEST_SIDE for s in sides)
    except TypeError:
        fits = False
    if not fits:
        written = shortened(repr(image_size))
        raise UserError(
            f"{name}={written}: write a whole number from 1 to {LARGEST_SIDE}, or (height, width)"
        )
    return as_size(operator.index(sides[0]), operator.index(sides[1]))


def check_statistics(mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
    """Raise an error unless mean and standard deviation can normalize images.

    Raises:
        UserError: one without the other, not a finite number for each channel, or a std of 0 or
            less.
    """
    if (mean is None) != (std is None):
        found, absent = ("std", "mean") if mean is None else ("mean", "std")
        raise UserError(f"{found} was passed without {absent}: pass both or neither")
    for name, values in (("mean", mean), ("std", std)):
        if values is None:
            continue
        written = shortened(repr(values))
        try:
            finite = [float(value) for value in values if math.isfinite(value)]
        except (TypeError, ValueError, RuntimeError):
            finite = []
        if not finite or len(finite) != len(values):
            raise UserError(f"{name}={written}: write one finite number for each channel")
        if name == "std" and min(finite) <= 0:
            raise UserError(f"std={written}: must be positive in every channel")
    if mean is not None and std is not None and len(mean) != len(std):
        raise UserError(
            f"mean has {len(mean)} numbers and std has {len(std)}: write one for each channel"
        )


def check_margin(margin: Any) -> None:
    """Raise an error unless the equivalence margin is a positive number of points.

    Raises:
        UserError: not a finite, positive number.
    """
    if isinstance(margin, int | float) and 0 < margin < math.inf:
        return
    raise UserError(f"margin={shortened(repr(margin))}: must be a positive, finite number")
