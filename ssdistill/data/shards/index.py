"""Index the images in shards: the offset of each, in 24 bytes, read from headers alone.

The index is stored next to the shards or, if that folder is read-only, in the user's state folder.
Only shards whose name, size or time changed are indexed again.
"""

import hashlib
import json
import logging
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np

from ssdistill.data.bad_image import BadImage
from ssdistill.data.progress import with_bar
from ssdistill.data.retry import retried
from ssdistill.data.shards.scanning import RECORD, Contents, scan
from ssdistill.data.shards.storage import Shard, Storage, folder_of
from ssdistill.data.splitmix import mixed
from ssdistill.errors import UserError, shown
from ssdistill.files import (
    check_writable,
    disk_errors,
    locked_by,
    state_folder,
    write_atomically,
)

log = logging.getLogger(__name__)

FORMAT = 1
"""Increase it whenever the records of the same shards change."""
RECORDS, META, FOLDER = "records.npy", "shards.json", ".ssdistill"
WAITING = "waiting for another process to create %s"
AT_ONCE = 64
"""Shards whose records are held in memory before they are written."""
FAR_WORKERS = 16


class ShardIndex:
    """The images of shards, in order.

    Args:
        shards: in this order.
        label: suffix of label files, such as ``.cls``.
        any_bands: whether images may have any number of channels.

    Attributes:
        records_N: (N,) :data:`RECORD`, mapped from disk.
        contents: of each shard.
        unique: whether all names of images are distinct.
        num_read: number of shards read to create or update the index.
    """

    records_N: np.ndarray
    contents: list[Contents]
    unique: bool
    num_read: int

    def __init__(
        self, storage: Storage, shards: Sequence[Shard], label: str, any_bands: bool = False
    ):
        self.storage, self.shards, self.label = storage, list(shards), label
        problem: UserError | None = None
        self._scan = partial(_scanned, storage, label, any_bands)
        for folder in _folders(storage, self.shards, [label, *(["bands"] if any_bands else [])]):
            try:
                check_writable(folder / META, "the index of shards")
            except UserError as error:
                problem = error
                continue
            waiting = partial(log.warning, WAITING, folder)
            with disk_errors(folder), locked_by(Path(f"{folder}.lock"), waiting, patience=1):
                self._open(folder)
            self.start_S = np.cumsum([0, *(content.count for content in self.contents)])
            self._starts: list[int] = self.start_S.tolist()
            return
        raise UserError(f"{problem}; set SSDISTILL_STATE to a writable one") from problem

    def __len__(self) -> int:
        return len(self.records_N)

    def shard_of(self, row: int) -> int:
        return bisect_right(self._starts, row) - 1

    def place(self, row: int) -> tuple[Shard, int, int, int, int]:
        """Return shard, block, size, distance to the label, and header blocks of an image."""
        _, *numbers = self.records_N[row].item()
        return self.shards[self.shard_of(row)], *numbers

    def stamps(self) -> np.ndarray:
        """Return (N,) uint64 that change with the shard, name, offset or size of an image."""
        stamp_N = np.empty(len(self), dtype=np.uint64)
        for k, shard in enumerate(self.shards):
            part = self.records_N[self.start_S[k] : self.start_S[k + 1]]
            place = part["block"].astype(np.uint64) << np.uint64(32) | part["size"]
            shard_number = np.uint64(shard.number)
            stamp_N[self.start_S[k] : self.start_S[k + 1]] = mixed(
                part["key"] ^ mixed(place ^ shard_number)
            )
        return stamp_N

    def _open(self, folder: Path) -> None:
        stored = _read(folder)
        shards = [asdict(shard) for shard in self.shards]
        if stored is None or stored[1] != shards:
            self.num_read = _write(folder, self.storage, self.shards, self._scan, stored)
            stored = _read(folder)
        else:
            self.num_read = 0
        if stored is None:
            raise OSError("the index cannot be read")
        mapped_N, _, self.contents, self.unique = stored
        # Indexing a plain array over the same pages is several times faster than a memmap.
        self.records_N = np.asarray(mapped_N)


def _folders(storage: Storage, shards: Sequence[Shard], settings: list[str]) -> Iterator[Path]:
    """Yield possible folders of the index, the preferred one first."""
    place = shards[0].place
    if not storage.far and os.access(folder_of(place), os.W_OK):
        key = _key([*settings, *(shard.name for shard in shards)])
        yield folder_of(place) / FOLDER / f"index-{key}"
    yield state_folder() / "shards" / _key([*settings, *(shard.place for shard in shards)])


def _key(names: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(names).encode("utf-8", "surrogateescape")).hexdigest()[:12]


Stored = tuple[np.ndarray, list[dict], list[Contents], bool]
Entry = tuple[np.ndarray, Contents]
Scan = Callable[[Shard], Entry]


def _read(folder: Path) -> Stored | None:
    """Return the content of an index; None if it is missing or damaged."""
    with suppress(OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        meta = json.loads((folder / META).read_text())
        records_N = np.load(folder / RECORDS, mmap_mode="r")
        contents = [Contents(**content) for content in meta["contents"]]
        complete = sum(content.count for content in contents) == len(records_N)
        if meta["format"] == FORMAT and complete and records_N.dtype == RECORD:
            return records_N, meta["shards"], contents, bool(meta["unique"])
    return None


def _write(
    folder: Path, storage: Storage, shards: Sequence[Shard], scan: Scan, former: Stored | None
) -> int:
    """Write an index, reusing a former one; return the number of shards read.

    The file is written sequentially, not through a memory map: on a full disk a write raises an
    error, while an assignment to mapped memory kills the process.
    """
    (folder / META).unlink(missing_ok=True)
    contents: list[Contents] = []
    unfinished, num_read = folder / f"{RECORDS}.partial", 0
    with open(unfinished, "wb") as file:
        _write_header(file, 0)
        title = f"indexing {shown(shards[0].name)}" + (", …" if len(shards) > 1 else "")
        pieces = _pieces(storage, shards, scan, _by_shard(former) if former else {})
        for _, entries, fresh in with_bar(pieces, len(shards), title):
            num_read += fresh
            for records_M, content in entries:
                file.write(records_M.tobytes())
                contents.append(content)
        file.seek(0)
        _write_header(file, sum(content.count for content in contents))
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, folder / RECORDS)
    meta: dict[str, Any] = {"format": FORMAT, "shards": [asdict(shard) for shard in shards]}
    meta["contents"] = [asdict(content) for content in contents]
    key_N = np.sort(np.load(folder / RECORDS, mmap_mode="r")["key"])
    meta["unique"] = not bool((key_N[1:] == key_N[:-1]).any())
    write_atomically(folder / META, json.dumps(meta) + "\n")
    return num_read


def _write_header(file: IO[bytes], count: int) -> None:
    # numpy pads the header, so its length does not depend on the first axis.
    header = {"descr": RECORD.descr, "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(file, header)


def _by_shard(stored: Stored) -> dict[Shard, Entry]:
    records_N, shards, contents, _ = stored
    entries, at = {}, 0
    for shard, content in zip(shards, contents, strict=True):
        entries[Shard(**shard)] = (records_N[at : at + content.count], content)
        at += content.count
    return entries


def _pieces(
    storage: Storage, shards: Sequence[Shard], scan: Scan, old: dict[Shard, Entry]
) -> Iterator[tuple[Sequence[Shard], list[Entry], int]]:
    """Yield pieces of the shards, the entry of each shard, and the number of shards read."""
    with ThreadPoolExecutor(FAR_WORKERS if storage.far else os.cpu_count() or 1) as pool:
        for start in range(0, len(shards), AT_ONCE):
            piece = shards[start : start + AT_ONCE]
            fresh = [shard for shard in piece if shard not in old]
            read = dict(zip(fresh, pool.map(scan, fresh), strict=True))
            yield piece, [read.get(shard) or old[shard] for shard in piece], len(fresh)


def _scanned(storage: Storage, label: str, any_bands: bool, shard: Shard) -> Entry:
    try:
        return retried(lambda _: scan(storage, shard, label, any_bands), 0, shard.name)
    except BadImage as error:
        raise UserError(
            f"data.path={shown(shard.place)}: {error.reason}; check it, or copy it again"
        ) from error
