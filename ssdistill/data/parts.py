"""Base class of sources of one file, whose test images may be held out of it."""

from abc import abstractmethod
from functools import cached_property

import numpy as np

from ssdistill.data.held_out import held_out_by_number
from ssdistill.data.splits import SPLITS, Source
from ssdistill.errors import UserError, shown


class PartedSource(Source):
    """A source that holds test images out, by a hash of their number, if it has none.

    Subclasses have the settings ``path`` and ``test_fraction``.
    """

    path: str
    test_fraction: float | None

    @property
    @abstractmethod
    def _has_test_images(self) -> bool:
        """Whether there are separate test images."""

    @abstractmethod
    def _total(self) -> int:
        """Return the number of training images, including those to hold out."""

    @cached_property
    def _held_out(self) -> tuple[np.ndarray | None, np.ndarray]:
        return held_out_by_number(self._total(), self.test_fraction, self.has_labels)

    @property
    def has_test(self) -> bool:
        return self._has_test_images or len(self._held_out[1]) > 0

    def _rows(self, name: str) -> np.ndarray | None:
        """Return the rows of a split, (M,) ascending; None for all rows of its own array or file.

        Raises:
            UserError: there are no test images.
        """
        if self._has_test_images:
            return None
        row_M = self._held_out[SPLITS.index(name)]
        if row_M is not None and not len(row_M):
            raise UserError(
                f"data.path={shown(self.path)} has no {name} images; raise data.test_fraction "
                f"(now {self.test_fraction})"
            )
        return row_M
