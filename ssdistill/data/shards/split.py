"""A split of images in tar archives."""

import hashlib
import io
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import IO

import numpy as np

from ssdistill.data.array_file import NPY
from ssdistill.data.array_member import image_file
from ssdistill.data.bad_image import BadImage
from ssdistill.data.decode import is_deep_file
from ssdistill.data.encoded_split import EncodedSplit
from ssdistill.data.shards.index import FAR_WORKERS, ShardIndex
from ssdistill.data.shards.members import BLOCK, LONGEST, DamagedTar, members
from ssdistill.data.shards.storage import Shard
from ssdistill.data.splitmix import mixed
from ssdistill.errors import shown

MOST_HEADERS = 4 * LONGEST // BLOCK
"""Maximum number of header blocks of one member."""
LAST_NAMES = 4096
"""Number of names of remote images to cache, since each costs a request."""


class Rows:
    """The rows of a split in an index: all of them, those held out, or all others.

    Only held-out rows are stored, in 8 bytes each.

    Args:
        count: number of rows of the index.
        held_out: (M,) int64, sorted.
        part: ``test`` for the held-out rows, ``train`` for the others.
    """

    def __init__(self, count: int, held_out: np.ndarray, part: str):
        self.held_out, self.part = held_out, part
        self._count = len(held_out) if part == "test" else count - len(held_out)
        # The row of position p is p plus the held-out rows before it, found by bisection.
        self._gaps = held_out - np.arange(len(held_out))

    def __len__(self) -> int:
        return self._count

    def row(self, position: int) -> int:
        """Return a single row; faster than indexing with an array."""
        if not 0 <= position < self._count:
            raise IndexError(f"image {position} of {self._count}")
        if self.part == "test":
            return int(self.held_out[position])
        return position + int(self._gaps.searchsorted(position, side="right"))

    def __getitem__(self, position_B: np.ndarray | slice) -> np.ndarray:
        if isinstance(position_B, slice):
            position_B = np.arange(len(self))[position_B]
        if self.part == "test":
            return self.held_out[position_B]
        return position_B + np.searchsorted(self._gaps, position_B, side="right")


def held_out_rows(index: ShardIndex, fraction: float) -> np.ndarray:
    """Return the rows whose names have the smallest hashes, (M,) int64, sorted.

    If names are not unique, the name of the shard is part of the hash.
    """
    count = len(index)
    num_test = min(max(round(fraction * count), int(fraction > 0)), count - 1)
    if num_test <= 0:
        return np.zeros(0, dtype=np.int64)
    key_N = np.array(index.records_N["key"])
    if not index.unique:
        for k, shard in enumerate(index.shards):
            name = hashlib.blake2b(shard.name.encode("utf-8", "surrogateescape"), digest_size=8)
            shard_hash = np.uint64(int.from_bytes(name.digest(), "little"))
            part = slice(index.start_S[k], index.start_S[k + 1])
            key_N[part] = mixed(key_N[part] ^ shard_hash)
    largest = np.partition(key_N, num_test - 1)[num_test - 1]
    # Of equal names, hold out the first.
    rows = np.flatnonzero(key_N < largest)
    equal = np.flatnonzero(key_N == largest)[: num_test - len(rows)]
    return np.sort(np.concatenate([rows, equal]))


class TarSplit(EncodedSplit):
    """Images in shards.

    Args:
        title: name of the split in messages.
        index: of the shards.
        rows: of the images of this split in the index.
        label_values: returns the labels of a split, and the class names if images have several
            labels.
    """

    def __init__(
        self,
        title: str,
        index: ShardIndex,
        rows: Rows,
        label_values: Callable[["TarSplit"], tuple[np.ndarray, tuple[str, ...] | None]],
    ):
        super().__init__()
        self.title, self.index, self.rows = title, index, rows
        self._label_values = label_values
        self._class_names: tuple[str, ...] | None = None
        self._names: OrderedDict[int, str] = OrderedDict()

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, i: int) -> bytes:
        """Return the encoded image; a ``.npy`` member is converted to an image file."""
        content = self.original(i)
        return image_file(content) if content.startswith(NPY) else content

    def original(self, i: int) -> bytes:
        """Return the content of the member, unchanged."""
        shard, block, size, _, headers = self.place(i)
        start = block * BLOCK
        if start + size > shard.size:
            raise BadImage(f"truncated at the end of {shown(shard.name)}; copy the shard again")
        if not self.index.storage.far:
            return self.index.storage.read(shard, start, size)
        head = _head_bytes(headers, block)
        content = self.index.storage.read(shard, start - head, head + size)
        self._names[i] = _name(content[:head])
        while len(self._names) > LAST_NAMES:
            self._names.popitem(last=False)
        return content[head:]

    def open_original(self, i: int) -> IO[bytes]:
        return io.BytesIO(self.original(i))

    def name(self, i: int) -> str:
        name = self.member_name(i)
        if self.index.unique:
            return name
        return f"{self.place(i)[0].name.removesuffix('.tar')}/{name}"

    def member_name(self, i: int) -> str:
        if (name := self._names.get(i)) is not None:
            return name
        shard, block, _, _, headers = self.place(i)
        start = block * BLOCK
        try:
            head = _head_bytes(headers, block)
            return _name(self.index.storage.read(shard, start - head, head))
        except (OSError, BadImage):  # unreadable images are named by their position
            return f"image at byte {start} of {shard.name}"

    def place(self, i: int) -> tuple[Shard, int, int, int, int]:
        """Return the position of an image, see :meth:`ShardIndex.place`."""
        return self.index.place(self.rows.row(i))

    def stamps(self) -> np.ndarray:
        stamp_N = self.index.stamps()
        return stamp_N if len(self) == len(stamp_N) else stamp_N[self.rows[:]]

    def identity(self) -> str:
        digest = hashlib.sha256()
        for shard in self.index.shards:
            digest.update(f"{shard.number}\n".encode())
        digest.update(self.rows.part.encode())
        digest.update(self.rows.held_out.astype("<i8").tobytes())
        return digest.hexdigest()

    def deep_rows(self) -> Sequence[int]:
        workers = FAR_WORKERS if self.index.storage.far else os.cpu_count() or 1
        with ThreadPoolExecutor(workers) as pool:
            return [row for row, deep in enumerate(pool.map(self._is_deep, range(len(self))))
                    if deep]  # fmt: skip

    def _is_deep(self, i: int) -> bool:
        try:
            return is_deep_file(self.read(i))
        except (OSError, BadImage):  # reported when the image is read
            return False

    @property
    def labeled(self) -> int:
        """Number of images that have a label; no label is read."""
        total = sum(content.labeled for content in self.index.contents)
        if len(self) == len(self.index) or total in (0, len(self.index)):
            return total and len(self)
        return int(np.count_nonzero(self.index.records_N["label"][self.rows[:]]))

    def labels(self) -> np.ndarray:
        if self.labeled < len(self):
            return super().labels()
        labels, self._class_names = self._label_values(self)
        return labels

    @property
    def class_names(self) -> tuple[str, ...] | None:
        return self._class_names


def _head_bytes(headers: int, block: int) -> int:
    """Return the size of ``headers`` blocks before ``block``, in bytes."""
    if not 0 < headers <= min(block, MOST_HEADERS):
        raise BadImage("has moved since it was indexed; run the command again")
    return headers * BLOCK


def _name(headers: bytes) -> str:
    """Return the name in the headers of a member."""
    member = None
    with suppress(DamagedTar):
        member = next(members(lambda at, length: headers[at : at + length], LONGEST), None)
    if member is None:
        raise BadImage("has moved since it was indexed; run the command again")
    name = member.name.decode("utf-8", "surrogateescape")
    while name.startswith("./"):
        name = name[2:]
    return name
