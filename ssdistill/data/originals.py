"""Crop views directly from the original images when a batch is read.

Nothing is decoded in advance, and only an index is stored; views are cropped at full resolution.
Images are read by threads, since decoding and resizing release the GIL.
"""

import logging
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssdistill.data.bad_image import BadImage
from ssdistill.data.cutting import Box, cut, decode, reduction_of
from ssdistill.data.decode import GIANT_PIXELS
from ssdistill.data.deep_pixels import Window
from ssdistill.data.encoded_split import EncodedSplit
from ssdistill.data.geometry import Boxes
from ssdistill.data.hanging_reads import AbandoningPool
from ssdistill.data.held_pixels import Holding
from ssdistill.data.image_color import ImageColor, color_
from ssdistill.data.image_index import ImageIndex
from ssdistill.data.image_set import ImageSet
from ssdistill.data.resizing import central, fitted
from ssdistill.data.retry import retried
from ssdistill.data.splits import Source
from ssdistill.data.thread_pool import thread_pool
from ssdistill.errors import UserError, shown
from ssdistill.settings import Size, height_width

log = logging.getLogger(__name__)

_one_giant = threading.Lock()
"""Held while any thread has a giant in memory; see ``decode.GIANT_PIXELS``."""


@contextmanager
def _giant_lock(seconds: float) -> Iterator[None]:
    # After that time the read of the giant whose turn it is hangs.
    has_turn = _one_giant.acquire(timeout=seconds)
    try:
        yield
    finally:
        if has_turn:
            _one_giant.release()


class Originals(ImageSet):
    """One split's images, decoded on access.

    An image whose pixels turn out to be damaged is replaced by a blank one in the mean color,
    never by another image. It is reported once and counted against ``max_bad``.

    Attributes:
        images: images of one size, decoded on every access.
        fingerprint: sha256 (hex) over the index, the size of the images, the channels, the
            window, and the settings of reading.
    """

    def __init__(
        self,
        source: Source,
        split: str,
        raw: EncodedSplit,
        index: ImageIndex,
        image_size: Size,
        *,
        window: Window | None = None,
        fingerprint: str,
        max_bad: float,
        workers: int | None = None,
        holding: Holding | None = None,
    ):
        self.source, self.split, self.raw, self.index = source, split, raw, index
        self.holding = holding = holding or Holding(window=window)
        self.form, self.window, self.windows = holding.form, holding.window, holding.windows
        self.channel_names = holding.form.names
        self.fingerprint, self.max_bad = fingerprint, max_bad
        self.folder = index.folder
        self.workers = workers or os.cpu_count() or 1
        self.bad_rows: list[int] = sorted(index.reasons)
        self.bad = [(raw.name(row), index.reasons[row]) for row in self.bad_rows]
        # The row of position p is p plus the bad rows before it, found by bisection.
        self._gaps = np.array(self.bad_rows, dtype=np.int64) - np.arange(len(self.bad_rows))
        self._stored = Squares(self, image_size)
        seen = self.form.seen(image_size)
        self.images = self._stored if seen == image_size else Squares(self, image_size, seen)
        self.notices: list[str] = []
        # Placeholders, replaced by measured values.
        self.mean, self.std = (0.5,) * self.form.count, (0.25,) * self.form.count
        self._failed: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.index) - len(self.bad_rows)

    @property
    def place(self) -> str:
        return self.raw.title

    @property
    def failed(self) -> dict[int, str]:
        """Rows of images that turned out to be damaged, with reasons; it may be added to."""
        return self._failed

    @property
    def stored(self) -> "Squares":
        return self._stored

    @cached_property
    def _pool(self) -> AbandoningPool:
        return thread_pool(self.workers, "cutting")

    def rows(self, position_B: np.ndarray) -> np.ndarray:
        """Return the source rows of readable images at the given positions."""
        position_B = np.asarray(position_B, dtype=np.int64)
        return position_B + np.searchsorted(self._gaps, position_B, side="right")

    def sizes(self, position_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return heights and widths, (B,) int64 each, without reading an image."""
        return self.index.sizes(self.rows(position_B))

    def cut(
        self,
        position_B: np.ndarray,
        boxes_V: Sequence[Boxes],
        sizes_V: Sequence[Size],
        colors_V: Sequence[list[ImageColor] | None] | None = None,
    ) -> list[Tensor]:
        """Decode each image once, and crop all its views.

        Args:
            position_B: (B,) positions of the images.
            boxes_V: for each view, one box per image, in pixels of the original.
            sizes_V: size of each view in pixels.
            colors_V: for each view, the operations by which each image is flipped and colored as
                well; None for crops alone.

        Returns:
            (B, C, height, width) for each view: float32 in [0, 1] if colored, otherwise as the
            images are held, uint8 or float32.

        Raises:
            UserError: more unreadable images than ``max_bad``.
        """
        row_B = self.rows(position_B)
        colors_V = colors_V or [None] * len(sizes_V)
        crops_V = [
            self._empty(len(row_B), *height_width(size), colored=colors is not None)
            for size, colors in zip(sizes_V, colors_V, strict=True)
        ]
        edges_VB4 = [
            torch.stack([b.top_B, b.left_B, b.height_B, b.width_B], dim=1).tolist() for b in boxes_V
        ]

        giant_B = self._are_giant(row_B)

        def fill(b: int) -> None:
            boxes = [
                Box(top, left, height, width, size)
                for (top, left, height, width), size in zip(
                    (edges_B4[b] for edges_B4 in edges_VB4), sizes_V, strict=True
                )
            ]
            try:
                with self._decoding_lock(giant_B[b]):
                    image_CHW, factor = self._decoded(int(row_B[b]), reduction_of(boxes))
                    parts_V = [cut(image_CHW, box.over(factor)) for box in boxes]
            except BadImage as error:
                self._count(int(row_B[b]), error.reason)
                parts_V = [self._blank[:, None, None].expand(crops.shape[1:]) for crops in crops_V]
            for part_CHW, crops_BCHW, colors in zip(parts_V, crops_V, colors_V, strict=True):
                if colors is None:
                    crops_BCHW[b] = part_CHW
                else:
                    color_(part_CHW, colors[b], crops_BCHW[b])

        # Read files in ascending order.
        self._pool.map(fill, np.argsort(row_B, kind="stable").tolist())
        self._check_failed()
        return crops_V

    def squares(self, position_B: np.ndarray, size: Size, view: Size | None = None) -> np.ndarray:
        """Return images of one size, identical to those of a store.

        Args:
            view: size of the central part to return; None for the whole images.

        Returns:
            (B, height, width, C).
        """
        row_B = self.rows(position_B)
        shape = (len(row_B), *height_width(view or size), self.form.count)
        squares_BHWC = np.empty(shape, dtype=self.holding.dtype)
        giant_B = self._are_giant(row_B)

        def fill(b: int) -> None:
            row = int(row_B[b])
            try:
                with self._decoding_lock(giant_B[b]):
                    whole_HWC = self.holding.whole(self.raw, row)
                    resized_HWC = fitted(whole_HWC, size, self.form.resize)
                squares_BHWC[b] = central(resized_HWC, view or size)
            except BadImage as error:
                self._count(row, error.reason)
                squares_BHWC[b] = self._blank.numpy()

        self._pool.map(fill, range(len(row_B)))
        self._check_failed()
        return squares_BHWC

    def _are_giant(self, row_B: np.ndarray) -> list[bool]:
        height_B, width_B = self.index.sizes(row_B)
        return (height_B * width_B > GIANT_PIXELS).tolist()

    def _decoding_lock(self, giant: bool) -> AbstractContextManager:
        """Return the context in which to decode and crop an image: giants take turns."""
        return _giant_lock(self.raw.reading.seconds) if giant else nullcontext()

    def _decoded(self, row: int, reduction: int) -> tuple[Tensor, int]:
        if self.form.channels is not None:
            held_HWC = np.ascontiguousarray(self.holding.whole(self.raw, row))
            if not held_HWC.flags.writeable:
                held_HWC = held_HWC.copy()
            return torch.from_numpy(held_HWC).permute(2, 0, 1), 1
        data = retried(self.raw.read, row, self.raw.name(row), self.raw.reading.seconds)
        color, frame = self.raw.reading.color, self.raw.frame(row)
        return decode(data, reduction, self.window, color=color, frame=frame)

    def _empty(self, count: int, height: int, width: int, *, colored: bool) -> Tensor:
        eight_bits = self.holding.dtype == np.uint8 and not colored
        dtype = torch.uint8 if eight_bits else torch.float32
        return torch.empty(count, self.form.count, height, width, dtype=dtype)

    @property
    def _blank(self) -> Tensor:
        mean_C = torch.tensor(self.mean)
        return mean_C.mul(255).round().to(torch.uint8) if self.holding.dtype == np.uint8 else mean_C

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


class Squares:
    """Originals in one size, indexed as an array (N, height, width, C)."""

    ndim = 4

    def __init__(self, originals: Originals, size: Size, view: Size | None = None):
        self._originals, self._size, self._view = originals, size, view
        self.dtype = originals.holding.dtype

    @property
    def shape(self) -> tuple[int, int, int, int]:
        height, width = height_width(self._view or self._size)
        return (len(self), height, width, self._originals.form.count)

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
        return self._originals.squares(position_B, self._size, self._view)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype=dtype)
