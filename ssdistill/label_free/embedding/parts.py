"""The images of a split as they are written: readable ones, each with its name."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ssdistill.data.image_set import ImageSet
from ssdistill.data.originals import Originals

NAMES = 16384
"""Names that are looked up at a time."""


@dataclass(frozen=True, eq=False)
class Part:
    """The images of one split.

    Attributes:
        split: ``train``, ``test``, or ``all`` for an array.
        images: (N, H, W, C), or an object indexed like one; readable images only.
        name_of: name of the image in a row of the source.
        fingerprint: sha256 (hex) of the images; empty where it is of no use.
        bad: reason why each row of the source that has no image could not be read.
        failed: likewise, of images whose damage is only found when they are decoded; grows while
            they are.
    """

    split: str
    images: Any
    name_of: Callable[[int], str]
    fingerprint: str = ""
    bad: dict[int, str] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)

    @classmethod
    def of(cls, images: ImageSet) -> "Part":
        """Return the part of the images of a store, or of originals."""
        name_of = images.source.split(images.split).name
        reasons = (reason for _, reason in images.bad)
        bad = dict(zip(images.bad_rows, reasons, strict=True))
        failed = images.failed if isinstance(images, Originals) else {}
        return cls(images.split, images.images, name_of, images.fingerprint, bad, failed)

    def __len__(self) -> int:
        return len(self.images)

    def __post_init__(self) -> None:
        gaps = np.array(sorted(self.bad), dtype=np.int64) - np.arange(len(self.bad))
        object.__setattr__(self, "_gaps", gaps)

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Return the source rows of the images at positions ``start`` to ``stop``."""
        position_B = np.arange(start, stop, dtype=np.int64)
        gaps: np.ndarray = self._gaps  # pyright: ignore[reportAttributeAccessIssue]
        return position_B + np.searchsorted(gaps, position_B, side="right")

    def names(self) -> Iterator[list[str]]:
        """Yield the names of the images that can be decoded, some at a time."""
        for start in range(0, len(self), NAMES):
            row_B = self.rows(start, min(start + NAMES, len(self))).tolist()
            yield [as_text(self.name_of(row)) for row in row_B if row not in self.failed]

    @property
    def skipped(self) -> dict[int, str]:
        """Reason why each row of the source without an embedding could not be read."""
        return self.bad | self.failed


def as_text(name: str) -> str:
    """Return a name that can be encoded; bytes that are no text are escaped."""
    return name.encode("utf-8", "backslashreplace").decode()


def all_names(parts: Sequence[Part]) -> Iterator[tuple[str, list[str]]]:
    """Yield split and names of all images in order, some at a time."""
    for part in parts:
        for names in part.names():
            yield part.split, names
