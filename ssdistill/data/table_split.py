"""A split of encoded images in rows of tables."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ssdistill.data.encoded_split import EncodedSplit
from ssdistill.data.list_split import ListClasses
from ssdistill.data.splitmix import number_hashes


class Shard(ABC):
    """One table with an image in every row.

    Attributes:
        name: prefix of the names of its images.
        state: changes with its content, such as size and time of a file.
    """

    name: str
    state: str

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, row: int) -> bytes:
        """Return the encoded image of a row; raise BadImage if there is none."""

    @abstractmethod
    def texts(self, column: str) -> Iterator[str]:
        """Yield the values of a column as text; lists as :func:`joined`."""


@dataclass(frozen=True)
class Labels:
    """The columns of labels.

    Attributes:
        columns: their names; of several, each holds 0 or 1 for the class that it names.
        names: of the classes, by number; None if the schema of the table has none.
    """

    columns: tuple[str, ...]
    names: tuple[str, ...] | None = None

    @property
    def each(self) -> bool:
        """Whether each class has a column of its own."""
        return len(self.columns) > 1


class TableSplit(EncodedSplit):
    """Images in rows of one or several tables.

    Args:
        title: name of the split in messages.
        shards: tables, in order.
        labels: of all rows of the source; None if unlabeled.
        names: of the classes, by number; None to use those of the labels.
        row_N: (N,) rows of the images of this split; None for all.
        first: position of the first row of these shards in ``labels``.
    """

    def __init__(
        self,
        title: str,
        shards: Sequence[Shard],
        labels: ListClasses | None,
        names: tuple[str, ...] | None = None,
        row_N: np.ndarray | None = None,
        first: int = 0,
    ):
        super().__init__()
        self.title, self.shards, self.row_N = title, list(shards), row_N
        self._labels, self._names, self._first = labels, names, first
        self._starts = np.cumsum([0, *map(len, self.shards)])

    @property
    def labeled(self) -> bool:
        return self._labels is not None

    def __len__(self) -> int:
        return int(self._starts[-1]) if self.row_N is None else len(self.row_N)

    def _locate(self, i: int) -> tuple[Shard, int]:
        row = i if self.row_N is None else int(self.row_N[i])
        at = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self.shards[at], row - int(self._starts[at])

    def read(self, i: int) -> bytes:
        shard, row = self._locate(i)
        return shard.read(row)

    def name(self, i: int) -> str:
        shard, row = self._locate(i)
        return f"{shard.name}:{row}"

    def identity(self) -> str:
        digest = hashlib.sha256()
        for shard in self.shards:
            digest.update(f"{shard.name}\0{shard.state}\0{len(shard)}\n".encode())
        if self.row_N is not None:
            digest.update(np.ascontiguousarray(self.row_N, dtype="<i8").data)
        return digest.hexdigest()

    def stamps(self) -> np.ndarray:
        keys = [row_keys(f"{shard.name}\0{shard.state}", len(shard)) for shard in self.shards]
        stamp_N = np.concatenate(keys) if keys else np.zeros(0, dtype=np.uint64)
        return (stamp_N if self.row_N is None else stamp_N[self.row_N]).astype("<u8")

    def labels(self) -> np.ndarray:
        if self._labels is None:
            return super().labels()
        label_N = self._labels.labels()[self._first :][: int(self._starts[-1])]
        return label_N if self.row_N is None else label_N[self.row_N]

    @property
    def class_names(self) -> tuple[str, ...] | None:
        return self._names or (self._labels.names if self._labels else None)


def row_keys(text: str, count: int) -> np.ndarray:
    """Return (count,) uint64: hashes of a text and the number of each row."""
    seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
    return number_hashes(np.arange(count, dtype=np.uint64), seed)


def labels_of(
    shards: Sequence[Shard], labels: Labels | None, title: str, name: Callable[[int], str]
) -> ListClasses | None:
    """Return the classes of all rows of the tables, read on first use."""
    if labels is None:
        return None

    def rows() -> Iterator[tuple[str, ...]]:
        for shard in shards:
            yield from zip(*map(shard.texts, labels.columns), strict=True)

    used_N = np.ones(sum(map(len, shards)), dtype=bool)
    columns = labels.columns if labels.each else None
    return ListClasses(rows, name, title, used_N, None, columns=columns, names=labels.names)
