"""A split of image files and their classes."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from typing import IO, TypeVar

import numpy as np

from ssdistill.data.channel_reader import read_channels
from ssdistill.data.decode import is_deep_file, open_regular, read_pixels
from ssdistill.data.encoded_split import EncodedSplit
from ssdistill.data.names import Names

WAITING_THREADS = 16
"""Threads that query file status, which takes about a millisecond over a network."""
PIECE = 512
"""Files per task."""
Piece = TypeVar("Piece")
T = TypeVar("T")


class FileSplit(EncodedSplit):
    """Image files below one or several folders.

    Args:
        title: name of the split in messages.
        roots: folders, and the names of the images relative to each, or absolute.
        class_N: (N,) int32 positions in ``all_classes``; None if unlabeled.
        all_classes: names of the classes.
    """

    def __init__(
        self,
        title: str,
        roots: Sequence[tuple[Path, Names]],
        class_N: np.ndarray | None,
        all_classes: tuple[str, ...],
    ):
        super().__init__()
        self.title, self.roots = title, tuple(roots)
        self.class_N, self.all_classes = class_N, all_classes
        self._starts = np.cumsum([0, *(len(names) for _, names in self.roots)])

    @property
    def labeled(self) -> bool:
        return self.class_N is not None

    def __len__(self) -> int:
        return int(self._starts[-1])

    def path(self, i: int) -> Path:
        """Return the path of image ``i``."""
        part = int(np.searchsorted(self._starts, i, side="right")) - 1
        folder, names = self.roots[part]
        return folder / names[i - int(self._starts[part])]

    def open(self, i: int) -> IO[bytes]:
        return open_regular(self.path(i))

    def read(self, i: int) -> bytes:
        with self.open(i) as file:
            return file.read()

    def image(self, i: int) -> np.ndarray:
        return read_pixels(self.path(i), partial(self._note, i), color=self.reading.color)

    def bands(self, i: int) -> np.ndarray:
        return read_channels(self.path(i), partial(self._note, i))

    def is_deep(self, i: int) -> bool:
        return is_deep_file(self.path(i))

    def name(self, i: int) -> str:
        (_, names), *others = self.roots
        return str(self.path(i)) if others else names[i]

    def identity(self) -> str:
        return self._statuses[0]

    def stamps(self) -> np.ndarray:
        return self._statuses[1]

    @property
    def missing(self) -> np.ndarray:
        """Rows of missing files."""
        return self._statuses[2]

    @cached_property
    def _statuses(self) -> tuple[str, np.ndarray, np.ndarray]:
        """Identity, stamps and rows of missing files; the status of each file is queried once."""
        digest = hashlib.sha256()
        stamps, missing, row = bytearray(), [], 0
        for lines in _in_threads(_lines, self._pieces(), WAITING_THREADS):
            digest.update(b"".join(lines))
            for line in lines:
                stamps += hashlib.blake2b(line, digest_size=8).digest()
            missing += [row + k for k, line in enumerate(lines) if line.endswith(b"\0missing\n")]
            row += len(lines)
        stamp_N = np.frombuffer(bytes(stamps), dtype="<u8")
        return digest.hexdigest(), stamp_N, np.array(missing, dtype=np.int64)

    def _pieces(self) -> Iterator[tuple[list[bytes], list[bytes]]]:
        """Yield names (as hashed) and paths of files, a few hundred at a time."""
        for k, (folder, names) in enumerate(self.roots):
            # Equal names in different folders are different images.
            before = b"%d/" % k if len(self.roots) > 1 else b""
            root = os.fsencode(folder)
            for start in range(0, len(names), PIECE):
                piece = names.encoded(start, start + PIECE)
                yield (
                    [before + name for name in piece],
                    [os.path.join(root, name) for name in piece],
                )

    def labels(self) -> np.ndarray:
        if self.class_N is None:
            return super().labels()
        return self.class_N.astype(np.int64)

    @property
    def class_names(self) -> tuple[str, ...] | None:
        return self.all_classes if self.labeled else None


def _lines(piece: tuple[list[bytes], list[bytes]]) -> list[bytes]:
    """Return name, size and time of each file, which change with the file."""
    lines = []
    for name, path in zip(*piece, strict=True):
        # Include the time: uncompressed images of equal size have equally many bytes.
        try:
            status = os.stat(path)
            lines.append(b"%b\0%d\0%d\n" % (name, status.st_size, status.st_mtime_ns))
        except (OSError, ValueError):  # a broken link, reported as a bad image when read
            lines.append(b"%b\0missing\n" % name)
    return lines


def _in_threads(work: Callable[[Piece], T], pieces: Iterator[Piece], threads: int) -> Iterator[T]:
    """Yield the results of ``work`` in order, with just enough pending tasks for all threads."""
    with ThreadPoolExecutor(threads) as pool:
        pending = []
        for piece in pieces:
            pending.append(pool.submit(work, piece))
            if len(pending) > 2 * threads:
                yield pending.pop(0).result()
        while pending:
            yield pending.pop(0).result()
