"""Store names of many images compactly: one array of text, and the end of each name."""

from array import array
from collections.abc import Iterable, Iterator
from hashlib import sha256
from itertools import pairwise
from typing import overload

import numpy as np

PIECE = 1 << 15
"""Names processed at a time."""
LARGEST_SHORT = (1 << 32) - 1


class NameWriter:
    """Collect names one by one."""

    def __init__(self) -> None:
        self._text, self._ends = bytearray(), array("Q", [0])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def add(self, name: str) -> None:
        self._text += name.encode("utf-8", "surrogateescape")
        self._ends.append(len(self._text))

    def names(self) -> "Names":
        text = np.frombuffer(bytes(self._text), dtype=np.uint8)
        return Names(text, np.frombuffer(self._ends, dtype=np.uint64))


class Names:
    """N names, read like a sequence of strings; bytes that are not UTF-8 become surrogates.

    Args:
        text: (L,) uint8, all names, concatenated.
        ends: (N + 1,) the start of each name, and the end of the last.
    """

    def __init__(self, text: np.ndarray, ends: np.ndarray):
        self._text = text
        self._ends = ends.astype(np.uint32 if len(text) <= LARGEST_SHORT else np.uint64)

    @classmethod
    def of(cls, names: Iterable[str]) -> "Names":
        writer = NameWriter()
        for name in names:
            writer.add(name)
        return writer.names()

    @property
    def nbytes(self) -> int:
        return self._text.nbytes + self._ends.nbytes

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, key: int) -> str: ...
    @overload
    def __getitem__(self, key: np.ndarray) -> "Names": ...
    def __getitem__(self, key: "int | np.ndarray") -> "str | Names":
        if isinstance(key, np.ndarray):
            return self._take(np.flatnonzero(key) if key.dtype == bool else key)
        if not -len(self) <= key < len(self):
            raise IndexError(f"name {key} of {len(self)}")
        row = key % len(self)
        name = self._text[int(self._ends[row]) : int(self._ends[row + 1])].tobytes()
        return name.decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), PIECE):
            for name in self.encoded(start, start + PIECE):
                yield name.decode("utf-8", "surrogateescape")

    def __eq__(self, other: object) -> bool:
        if isinstance(other, (list, tuple)):
            return list(self) == list(other)
        return isinstance(other, Names) and (
            np.array_equal(self._ends, other._ends) and np.array_equal(self._text, other._text)
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        first = ", ".join(repr(self[row]) for row in range(min(3, len(self))))
        return f"Names({len(self)}: {first}{', …' if len(self) > 3 else ''})"

    def encoded(self, start: int, stop: int) -> list[bytes]:
        """Return the names of rows from ``start`` to ``stop`` as bytes of the file system."""
        ends = self._ends[start : min(stop, len(self)) + 1].tolist()
        if not ends:
            return []
        piece, first = self._text[ends[0] : ends[-1]].tobytes(), ends[0]
        return [piece[a - first : b - first] for a, b in pairwise(ends)]

    def hashes(self) -> np.ndarray:
        """Return (N,) uint64: the first 8 bytes of the sha256 of each name, big-endian."""
        hash_N = np.empty(len(self), dtype=np.uint64)
        for start in range(0, len(self), PIECE):
            heads = b"".join(sha256(n).digest()[:8] for n in self.encoded(start, start + PIECE))
            hash_N[start : start + PIECE] = np.frombuffer(heads, dtype=">u8")
        return hash_N

    def _take(self, row_M: np.ndarray) -> "Names":
        start_M = self._ends[row_M].astype(np.int64)
        length_M = self._ends[np.asarray(row_M) + 1].astype(np.int64) - start_M
        ends = np.zeros(len(row_M) + 1, dtype=np.int64)
        np.cumsum(length_M, out=ends[1:])
        text = np.empty(ends[-1], dtype=np.uint8)
        for at in range(0, len(row_M), PIECE):
            part = slice(at, at + PIECE)
            low, high = ends[at], ends[min(at + PIECE, len(row_M))]
            # For each byte, the offset from target to source.
            shift = np.repeat(start_M[part] - ends[:-1][part], length_M[part])
            text[low:high] = self._text[np.arange(low, high) + shift]
        return Names(text, ends)


def joined(parts: "list[Names]") -> "Names":
    """Concatenate names."""
    if len(parts) == 1:
        return parts[0]
    lengths = np.array([len(part._text) for part in parts], dtype=np.int64)
    before = np.cumsum(lengths) - lengths
    ends = [part._ends[1:].astype(np.int64) + at for part, at in zip(parts, before, strict=True)]
    return Names(np.concatenate([p._text for p in parts]), np.concatenate([[0], *ends]))
