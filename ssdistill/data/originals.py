"""Crop views directly from the original images when a batch is read.

Nothing is decoded in advance, and only an index is stored; views are cropped at full resolution.
Images are read by threads, since decoding and resizing release the GIL.
"""

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssdistill.data.bad_image import BadImage
from ssdistill.data.cutting import Box, cut, decode, reduction_of
from ssdistill.data.decode import square
from ssdistill.data.deep_pixels import Window, full_range, render
from ssdistill.data.encoded_split import EncodedSplit
from ssdistill.data.geometry import Boxes
from ssdistill.data.image_index import ImageIndex
from ssdistill.data.image_set import ImageSet
from ssdistill.data.retry import retried
from ssdistill.data.splits import Source
from ssdistill.errors import UserError, shown

log = logging.getLogger(__name__)


class Originals(ImageSet):
    """One split's images, decoded on access.

    An image whose pixels turn out to be damaged is replaced by a blank one in the mean color,
    never by another image. It is reported once and counted against ``max_bad``.

    Attributes:
        images: central squares, decoded on every access.
        fingerprint: sha256 (hex) over the index, the size of the squares and the window.
    """

    def __init__(
        self,
        source: Source,
        split: str,
        raw: EncodedSplit,
        index: ImageIndex,
        image_size: int,
        *,
        window: Window | None,
        fingerprint: str,
        max_bad: float,
        workers: int | None = None,
    ):
        self.source, self.split, self.raw, self.index = source, split, raw, index
        self.window, self.fingerprint, self.max_bad = window, fingerprint, max_bad
        self.folder = index.folder
        self.workers = workers or os.cpu_count() or 1
        self.bad_rows: list[int] = sorted(index.reasons)
        self.bad = [(raw.name(row), index.reasons[row]) for row in self.bad_rows]
        # The row of position p is p plus the bad rows before it, found by bisection.
        self._gaps = np.array(self.bad_rows, dtype=np.int64) - np.arange(len(self.bad_rows))
        self.images = Squares(self, image_size)
        self.notices: list[str] = []
        # Placeholders, replaced by measured values.
        self.mean, self.std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
        self._failed: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.index) - len(self.bad_rows)

    @property
    def place(self) -> str:
        return self.raw.title

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.workers, thread_name_prefix="cutting")

    def rows(self, position_B: np.ndarray) -> np.ndarray:
        """Return the source rows of readable images at the given positions."""
        position_B = np.asarray(position_B, dtype=np.int64)
        return position_B + np.searchsorted(self._gaps, position_B, side="right")

    def sizes(self, position_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return heights and widths, (B,) int64 each, without reading an image."""
        return self.index.sizes(self.rows(position_B))

    def cut(
        self, position_B: np.ndarray, boxes_V: Sequence[Boxes], sides_V: Sequence[int]
    ) -> list[Tensor]:
        """Decode each image once, and crop all its views.

        Args:
            position_B: (B,) positions of the images.
            boxes_V: for each view, one box per image, in pixels of the original.
            sides_V: side of each view in pixels.

        Returns:
            (B, 3, side, side) uint8 for each view.

        Raises:
            UserError: more unreadable images than ``max_bad``.
        """
        row_B = self.rows(position_B)
        crops_V = [torch.empty(len(row_B), 3, side, side, dtype=torch.uint8) for side in sides_V]
        edges_VB4 = [
            torch.stack([b.top_B, b.left_B, b.height_B, b.width_B], dim=1).tolist() for b in boxes_V
        ]

        def fill(b: int) -> None:
            boxes = [
                Box(top, left, height, width, side)
                for (top, left, height, width), side in zip(
                    (edges_B4[b] for edges_B4 in edges_VB4), sides_V, strict=True
                )
            ]
            try:
                image_CHW, factor = self._decoded(int(row_B[b]), reduction_of(boxes))
                for crops_BCHW, box in zip(crops_V, boxes, strict=True):
                    crops_BCHW[b] = cut(image_CHW, box.over(factor))
            except BadImage as error:
                self._count(int(row_B[b]), error.reason)
                for crops_BCHW in crops_V:
                    crops_BCHW[b] = self._blank[:, None, None]

        # Read files in ascending order.
        list(self._pool.map(fill, np.argsort(row_B, kind="stable").tolist()))
        self._check_failed()
        return crops_V

    def squares(self, position_B: np.ndarray, side: int) -> np.ndarray:
        """Return central squares, (B, side, side, 3) uint8, identical to those of a store."""
        row_B = self.rows(position_B)
        squares_BHWC = np.empty((len(row_B), side, side, 3), dtype=np.uint8)

        def fill(b: int) -> None:
            row = int(row_B[b])
            try:
                pixels = retried(partial(_pixels, self.raw, self.window), row, self.raw.name(row))
                squares_BHWC[b] = square(pixels, side)
            except BadImage as error:
                self._count(row, error.reason)
                squares_BHWC[b] = self._blank.numpy()

        list(self._pool.map(fill, range(len(row_B))))
        self._check_failed()
        return squares_BHWC

    def _decoded(self, row: int, reduction: int) -> tuple[Tensor, int]:
        data = retried(self.raw.read, row, self.raw.name(row))
        return decode(data, reduction, self.window)

    @property
    def _blank(self) -> Tensor:
        return torch.tensor(self.mean).mul(255).round().to(torch.uint8)

    def _count(self, row: int, reason: str) -> None:
        """Record an image whose header is valid but whose pixels cannot be read."""
        if row not in self._failed:
            self._failed[row] = reason
            log.warning(
                "%s: cannot read %s (%s); replacing it with a blank image",
                *(shown(self.raw.title), shown(self.raw.name(row)), reason),
            )

    def _check_failed(self) -> None:
        bad = len(self.bad) + len(self._failed)
        if bad > self.max_bad * len(self.index):
            row, reason = next(iter(self._failed.items()), (None, ""))
            example = f" (e.g. {shown(self.raw.name(row))}: {reason})" if row is not None else ""
            raise UserError(
                f"{shown(self.raw.title)}: more than {self.max_bad:.1%} of {len(self.index)} "
                f"images cannot be read{example}; replace them, or raise data.max_bad"
            )


def _pixels(raw: EncodedSplit, window: Window | None, row: int) -> np.ndarray:
    pixels = raw.image(row)
    if pixels.dtype == np.uint8:
        return pixels
    return render(pixels, window or full_range(pixels.dtype))


class Squares:
    """Central squares of originals, indexed as an array (N, side, side, 3) of uint8."""

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, originals: Originals, side: int):
        self._originals, self._side = originals, side

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (len(self), self._side, self._side, 3)

    def __len__(self) -> int:
        return len(self._originals)

    def __getitem__(self, key: Any) -> np.ndarray:
        if isinstance(key, (int, np.integer)):
            if not -len(self) <= key < len(self):
                raise IndexError(f"image {key} of {len(self)}")
            return self[[int(key) % len(self)]][0]
        if key is Ellipsis:
            key = slice(None)
        if isinstance(key, slice):
            position_B = np.arange(len(self))[key]
        else:
            position_B = np.asarray(key)
            if position_B.dtype == bool:
                position_B = np.flatnonzero(position_B)
        return self._originals.squares(position_B, self._side)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype=dtype)
