"""A split of encoded images, from any container."""

import io
import os
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import IO

import numpy as np

from ssdistill.data.bad_image import BadImage
from ssdistill.data.channel_reader import read_channels
from ssdistill.data.decode import is_deep_file, read_pixels
from ssdistill.data.hanging_reads import AbandoningPool
from ssdistill.data.retry import retried
from ssdistill.data.splits import RawSplit


class EncodedSplit(RawSplit):
    """Images as encoded bytes, read by row.

    A container implements ``read``, which returns the bytes of an image, and ``stamps``, which
    reveal changed images. Views can be cropped from such images (``data.pixels=original``).
    """

    def __init__(self) -> None:
        self._notes: dict[tuple[int, str], None] = {}

    @abstractmethod
    def read(self, i: int) -> bytes:
        """Return the encoded image ``i``; raise OSError if the system fails."""

    @abstractmethod
    def stamps(self) -> np.ndarray:
        """Return (N,) uint64 that change with name, size or time of an image; reads no image."""

    def original(self, i: int) -> bytes:
        """Return image ``i`` as stored in the source, before any conversion for decoding."""
        return self.read(i)

    def member_name(self, i: int) -> str:
        """Return the name of image ``i`` in its archive, which may differ from :meth:`name`."""
        return self.name(i)

    def encoded(self) -> "EncodedSplit":
        return self

    def frame(self, i: int) -> int | None:
        """Return which frame of its file image ``i`` is; None where a file is one image."""
        return None

    def open(self, i: int) -> IO[bytes]:
        """Open the encoded image ``i``, to read parts of it."""
        return io.BytesIO(self.read(i))

    def image(self, i: int) -> np.ndarray:
        return read_pixels(self.read(i), partial(self._note, i), color=self.reading.color)

    def open_original(self, i: int) -> IO[bytes]:
        """Open image ``i`` as it lies in the source, see :meth:`original`."""
        return self.open(i)

    def bands(self, i: int) -> np.ndarray:
        return read_channels(self.original(i), partial(self._note, i))

    def deep_rows(self) -> Sequence[int]:
        with AbandoningPool(os.cpu_count() or 1, "reading") as pool:
            flags = pool.map(self._is_deep, range(len(self)))
        return [row for row, flag in enumerate(flags) if flag]

    def is_deep(self, i: int) -> bool:
        """Return whether image ``i`` has more than 8 bits per channel; False if unreadable."""
        return is_deep_file(self.read(i))

    def _is_deep(self, row: int) -> bool:
        with suppress(BadImage):  # reported when the image is read
            return retried(self.is_deep, row, self.name(row), self.reading.seconds)
        return False

    def notes(self) -> list[str]:
        return [phrase for _, phrase in list(self._notes)]

    def _note(self, i: int, phrase: str) -> None:
        """Note what of image ``i`` is ignored, once."""
        self._notes[i, phrase] = None
