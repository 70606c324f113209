"""The frames of animations and the pages of TIFF files, as separate images."""

import hashlib
import io
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from ssdistill.data.bad_image import BadImage
from ssdistill.data.bands import is_stack
from ssdistill.data.decode import ANIMATIONS, pixel_limit, read_pixels
from ssdistill.data.deep_pixels import is_deep
from ssdistill.data.encoded_split import EncodedSplit
from ssdistill.data.file_split import FileSplit
from ssdistill.data.formats import JXL, open_image
from ssdistill.data.hanging_reads import AbandoningPool
from ssdistill.data.header import JPEG_START
from ssdistill.data.progress import with_bar
from ssdistill.data.retry import retried

MOST_FRAMES = 10_000
"""Maximum number of frames of a file; one with more is a bad image."""
PIECE = 4096
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class FrameSplit(EncodedSplit):
    """The frames of the files of another split, in order.

    The number of frames of each file is read from its header, once, and cached (12 bytes per
    file). All frames of a file have its label and are in the same split. They are named
    ``a.gif#0``, ``a.gif#1``, …; a file with one frame keeps its name.

    Args:
        raw: the files.
        cache: file for the numbers of frames; None disables caching.
        keeps: whether to write the cache, rather than only read it.
    """

    def __init__(self, raw: EncodedSplit, cache: Path | None = None, *, keeps: bool = False):
        super().__init__()
        self.raw, self.title, self.reading = raw, raw.title, raw.reading
        self._cache, self._keeps = cache, keeps

    @cached_property
    def count_F(self) -> np.ndarray:
        """(F,) int32, the number of frames of each file; 0 for too many, which is one bad image."""
        stamp_F = self.raw.stamps()
        count_F = np.full(len(stamp_F), -1, dtype=np.int32)
        if self._cache is not None:
            _load_counts(self._cache, stamp_F, count_F)
        unknown = np.flatnonzero(count_F < 0)
        if not len(unknown):
            return count_F

        def pieces() -> Iterator[tuple[list[int], list[int]]]:
            with AbandoningPool(os.cpu_count() or 1, "counting") as pool:
                for start in range(0, len(unknown), PIECE):
                    piece = unknown[start : start + PIECE].tolist()
                    yield piece, pool.map(partial(_count, self.raw), piece)

        # Nothing is decoded, so no image is too large.
        with pixel_limit(sys.maxsize):
            for piece, counts in with_bar(
                pieces(), len(unknown), f"counting frames of {self.title}"
            ):
                count_F[piece] = counts
        if self._cache is not None and self._keeps:
            with suppress(OSError):
                self._cache.parent.mkdir(parents=True, exist_ok=True)
                _save_counts(self._cache, stamp_F, count_F)
        return count_F

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.cumsum(np.concatenate([[0], np.maximum(self.count_F, 1)]))

    def __len__(self) -> int:
        return int(self._starts[-1])

    def place(self, i: int) -> tuple[int, int | None]:
        """Return the file of image ``i`` and its frame, or None if the file has only one."""
        file = int(np.searchsorted(self._starts, i, side="right")) - 1
        if self.count_F[file] == 1:
            return file, None
        return file, int(i) - int(self._starts[file])

    def frame(self, i: int) -> int | None:
        return self.place(i)[1]

    def open(self, i: int) -> IO[bytes]:
        return self.raw.open(self._file(i))

    def read(self, i: int) -> bytes:
        return self.raw.read(self._file(i))

    def _file(self, i: int) -> int:
        file, _ = self.place(i)
        if not self.count_F[file]:
            raise BadImage(f"more than {MOST_FRAMES} frames")
        return file

    def image(self, i: int) -> np.ndarray:
        file, raw = self._file(i), self.raw
        content = raw.path(file) if isinstance(raw, FileSplit) else raw.read(file)
        note = partial(self._note, i)
        return read_pixels(content, note, color=self.reading.color, frame=self.frame(i))

    def original(self, i: int) -> bytes:
        """Return the file of a single image; a frame as PNG, or ``.npy`` for more than 8 bits."""
        if self.frame(i) is None:
            return self.raw.original(self._file(i))
        pixels, file = self.image(i), io.BytesIO()
        if pixels.dtype == np.uint8:
            Image.fromarray(pixels).save(file, "PNG")
        else:
            np.save(file, pixels, allow_pickle=False)
        return file.getvalue()

    def name(self, i: int) -> str:
        file, frame = self.place(i)
        return self.raw.name(file) if frame is None else f"{self.raw.name(file)}#{frame}"

    def member_name(self, i: int) -> str:
        file, frame = self.place(i)
        return self.raw.member_name(file) if frame is None else f"{self.raw.name(file)}#{frame}"

    def identity(self) -> str:
        return self._identity

    @cached_property
    def _identity(self) -> str:
        counts = self.count_F.astype("<i4").tobytes()
        return hashlib.sha256(f"{self.raw.identity()} frames ".encode() + counts).hexdigest()

    def stamps(self) -> np.ndarray:
        each_F = np.maximum(self.count_F, 1)
        number_N = np.arange(len(self)) - np.repeat(self._starts[:-1], each_F)
        with np.errstate(over="ignore"):
            return np.repeat(self.raw.stamps(), each_F) + number_N.astype(np.uint64) * _GOLDEN

    def deep_rows(self) -> Sequence[int]:
        single = self._starts[[row for row in self.raw.deep_rows() if self.count_F[row] == 1]]
        several = np.flatnonzero(self.count_F > 1)
        rows = [
            int(self._starts[file]) + frame
            for file in several.tolist()
            for frame in _deep_frames(self.raw, file, int(self.count_F[file]))
        ]
        return sorted([*map(int, single), *rows])

    def labels(self) -> np.ndarray:
        return np.repeat(self.raw.labels(), np.maximum(self.count_F, 1), axis=0)

    def weights(self) -> np.ndarray | None:
        """Return the weights of images, (N,) float64; each frame has the weight of its file."""
        weight_F = self.raw.weights()
        return None if weight_F is None else np.repeat(weight_F, np.maximum(self.count_F, 1))

    @property
    def class_names(self) -> tuple[str, ...] | None:
        return self.raw.class_names


def num_frames(file: IO[bytes]) -> int:
    """Return the number of images in an open file, without decoding them.

    Smaller copies of the first page of a TIFF do not count. An empty file counts as one image.
    """
    head = file.read(64)
    file.seek(0)
    # Opening a JPEG XL file decodes it.
    if not head or head.startswith((JPEG_START, *JXL)):
        return 1
    with open_image(file) as image:
        if image.format in ANIMATIONS or is_stack(image):
            return int(getattr(image, "n_frames", 1))
    return 1


def _count(raw: EncodedSplit, row: int) -> int:
    """Return the number of frames of a file: 1 if it is unreadable, 0 for too many."""

    def count(row: int) -> int:
        with raw.open(row) as file:
            return num_frames(file)

    try:
        number = retried(count, row, raw.name(row), raw.reading.seconds)
    except Exception:  # Pillow raises all kinds of errors; reported when the image is read
        return 1
    return number if 1 <= number <= MOST_FRAMES else 0


def _deep_frames(raw: EncodedSplit, row: int, count: int) -> list[int]:
    with suppress(Exception), raw.open(row) as file:
        deep = []
        for frame in range(count):
            file.seek(0)
            if is_deep(file, frame):
                deep.append(frame)
        return deep
    return []


def _load_counts(cache: Path, stamp_F: np.ndarray, count_F: np.ndarray) -> None:
    """Fill in the cached counts of unchanged files."""
    with suppress(Exception):  # missing or damaged: count all again
        with np.load(cache, allow_pickle=False) as content:
            stamp_K, count_K = content["stamp"], content["count"]
        if stamp_K.dtype != stamp_F.dtype or len(stamp_K) != len(count_K) or not len(stamp_K):
            return
        order = np.argsort(stamp_K, kind="stable")
        at_F = order[np.minimum(np.searchsorted(stamp_K, stamp_F, sorter=order), len(order) - 1)]
        same_F = stamp_K[at_F] == stamp_F
        count_F[same_F] = count_K[at_F[same_F]]


def _save_counts(cache: Path, stamp_F: np.ndarray, count_F: np.ndarray) -> None:
    unfinished = cache.with_name(f"{cache.name}.{os.getpid()}.partial")
    with open(unfinished, "wb") as file:
        np.savez(file, stamp=stamp_F, count=count_F)
    os.replace(unfinished, cache)
