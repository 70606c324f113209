"""Pair views of the student with views of the teacher."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar

from ssdistill.data.view_size import largest
from ssdistill.errors import UserError
from ssdistill.losses import Pairing
from ssdistill.settings import Size

Item = TypeVar("Item")
Pair = tuple[int, int]


def resolve_pairs(pairing: Pairing | Sequence[Pair], sizes: Sequence[Size]) -> list[Pair]:
    """Return pairs of (student's view, teacher's view), numbered from 0.

    Args:
        pairing: ``same``: every view with itself. ``other``: every view with each of the others
            that is of full size, as in multi-crop training (arXiv:2006.09882); with itself where
            there is one view only. Or the pairs themselves.
        sizes: of each view, in pixels.

    Raises:
        UserError: a number that names no view.
    """
    count = len(sizes)
    if pairing == "same":
        return [(view, view) for view in range(count)]
    if pairing == "other":
        full_size = largest(sizes)
        full = [view for view in range(count) if sizes[view] == full_size]
        pairs = [
            (student_view, teacher_view)
            for student_view in range(count)
            for teacher_view in full
            if student_view != teacher_view
        ]
        return pairs or [(0, 0)]
    for pair in pairing:
        if max(pair) >= count:
            available = "the only view is 0" if count == 1 else f"views are 0 to {count - 1}"
            raise UserError(f"pairs: [{pair[0]}, {pair[1]}]: no view {max(pair)}; {available}")
    return [(student_view, teacher_view) for student_view, teacher_view in pairing]


def selected(items: Mapping[Any, Item], names: Collection[str]) -> dict[str, Item]:
    """Return the items with one of the names."""
    return {name: item for name, item in items.items() if name in names}
