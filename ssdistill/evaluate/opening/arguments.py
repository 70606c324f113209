"""Check the arguments of this package's functions before anything is opened."""

import math
import operator
from collections.abc import Sequence
from typing import Any

from ssdistill.data.settings import LARGEST_SIDE
from ssdistill.errors import UserError, shortened


def check_image_size(image_size: Any) -> None:
    """Raise an error unless ``image_size`` is a possible side of an image.

    Raises:
        UserError: not a whole number of pixels, from 1 to :data:`LARGEST_SIDE`.
    """
    if image_size is None:
        return
    try:
        fits = not isinstance(image_size, bool) and 0 < operator.index(image_size) <= LARGEST_SIDE
    except TypeError:
        fits = False
    if not fits:
        written = shortened(repr(image_size))
        raise UserError(f"image_size={written}: write a whole number from 1 to {LARGEST_SIDE}")


def check_statistics(mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
    """Raise an error unless mean and standard deviation can normalize images.

    Raises:
        UserError: one without the other, not three finite numbers each, or a std of 0 or less.
    """
    if (mean is None) != (std is None):
        raise UserError("mean and std belong together: pass both or neither")
    for name, values in (("mean", mean), ("std", std)):
        if values is None:
            continue
        written = shortened(repr(values))
        try:
            finite = [float(value) for value in values if math.isfinite(value)]
        except (TypeError, ValueError, RuntimeError):
            finite = []
        if len(finite) != 3 or len(values) != 3:
            raise UserError(f"{name}={written}: write three numbers, for red, green and blue")
        if name == "std" and min(finite) <= 0:
            raise UserError(f"std={written}: must be positive in every channel")


def check_margin(margin: Any) -> None:
    """Raise an error unless the equivalence margin is a positive number of points.

    Raises:
        UserError: not a finite, positive number.
    """
    if isinstance(margin, int | float) and 0 < margin < math.inf:
        return
    raise UserError(f"margin={shortened(repr(margin))}: must be a positive, finite number")
