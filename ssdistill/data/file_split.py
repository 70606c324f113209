"""A split of image files with their classes."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np

from ssdistill.data.decode import is_deep_file, open_regular, read_pixels
from ssdistill.data.encoded_split import EncodedSplit


@dataclass
class FileSplit(EncodedSplit):
    """Image files below ``folder``; ``classes_N`` is each one's class, None if unlabeled."""

    title: str
    folder: Path
    names: list[str]
    classes_N: list[str] | None
    all_classes: tuple[str, ...]
    _notes: dict[int, str] = field(default_factory=dict)

    @property
    def labeled(self) -> bool:
        return self.classes_N is not None

    def __len__(self) -> int:
        return len(self.names)

    def open(self, i: int) -> IO[bytes]:
        return open_regular(self.folder / self.names[i])

    def read(self, i: int) -> bytes:
        with self.open(i) as file:
            return file.read()

    def image(self, i: int) -> np.ndarray:
        return read_pixels(self.folder / self.names[i], partial(self._notes.__setitem__, i))

    def deep_rows(self) -> Sequence[int]:
        paths = [self.folder / name for name in self.names]
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            return [row for row, deep in enumerate(pool.map(is_deep_file, paths)) if deep]

    def name(self, i: int) -> str:
        return self.names[i]

    def identity(self) -> str:
        digest = hashlib.sha256()
        for line in self._lines():
            digest.update(line)
        return digest.hexdigest()

    def stamps(self) -> np.ndarray:
        lines = (hashlib.blake2b(line, digest_size=8).digest() for line in self._lines())
        return np.frombuffer(b"".join(lines), dtype="<u8")

    def _lines(self) -> Iterator[bytes]:
        """Yield what changes with each file: name, bytes and time."""
        for name in self.names:
            # The time is part of it: bitmaps of one size in pixels are of one size in bytes.
            try:
                status = os.stat(self.folder / name)
                line = f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n"
            except OSError:  # a link to nothing; a bad image, once it is read
                line = f"{name}\0missing\n"
            yield line.encode("utf-8", "surrogateescape")

    def labels(self) -> np.ndarray:
        if self.classes_N is None:
            return super().labels()
        position = {name: k for k, name in enumerate(self.all_classes)}
        return np.array([position[name] for name in self.classes_N], dtype=np.int64)

    @property
    def class_names(self) -> tuple[str, ...] | None:
        return self.all_classes if self.labeled else None
