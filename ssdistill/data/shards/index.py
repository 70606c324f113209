"""An index of the images in shards: where each one begins, in 24 bytes, read from headers alone.

It is kept beside the shards, or where that folder cannot be written to, among the user's own
state. A shard of another name, size or time is indexed again, and no other.
"""

import hashlib
import json
import logging
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
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
"""Raise it when the same shards would be described differently."""
RECORDS, META, FOLDER = "records.npy", "shards.json", ".ssdistill"
WAITING = "waiting for another process that is creating %s"
AT_ONCE = 64
"""Shards whose records are in memory before they are written."""
FAR_WORKERS = 16


class ShardIndex:
    """The images of some shards, in order.

    Args:
        shards: in this order.
        label: suffix of labels, such as ``.cls``.

    Attributes:
        records_N: (N,) :data:`RECORD`, mapped from disk.
        contents: of each shard.
        unique: whether no two images have one name.
        num_read: how many shards were read for this opening.
    """

    records_N: np.ndarray
    contents: list[Contents]
    unique: bool
    num_read: int

    def __init__(self, storage: Storage, shards: Sequence[Shard], label: str):
        self.storage, self.shards, self.label = storage, list(shards), label
        problem: UserError | None = None
        for folder in _folders(storage, self.shards, label):
            try:
                check_writable(folder / META, "the index of shards")
            except UserError as error:
                problem = error
                continue
            waiting = partial(
                log.warning, "waiting for another process that is creating %s", folder
            )
            with disk_errors(folder), locked_by(Path(f"{folder}.lock"), waiting, patience=1):
                self._open(folder)
            self.start_S = np.cumsum([0, *(found.count for found in self.contents)])
            self._starts: list[int] = self.start_S.tolist()
            return
        raise UserError(f"{problem}; SSDISTILL_STATE names one") from problem

    def __len__(self) -> int:
        return len(self.records_N)

    def shard_of(self, row: int) -> int:
        return bisect_right(self._starts, row) - 1

    def place(self, row: int) -> tuple[Shard, int, int, int, int]:
        """Return an image's shard, block, size, distance of its label, and blocks of headers."""
        _, *numbers = self.records_N[row].item()
        return self.shards[self.shard_of(row)], *numbers

    def stamps(self) -> np.ndarray:
        """Return (N,) uint64 that change with an image's shard, name, place or size."""
        stamp_N = np.empty(len(self), dtype=np.uint64)
        for k, shard in enumerate(self.shards):
            part = self.records_N[self.start_S[k] : self.start_S[k + 1]]
            place = part["block"].astype(np.uint64) << np.uint64(32) | part["size"]
            of_shard = np.uint64(shard.number)
            stamp_N[self.start_S[k] : self.start_S[k + 1]] = mixed(
                part["key"] ^ mixed(place ^ of_shard)
            )
        return stamp_N

    def _open(self, folder: Path) -> None:
        known = _read(folder)
        now = [asdict(shard) for shard in self.shards]
        if known is None or known[1] != now:
            self.num_read = _write(folder, self.storage, self.shards, self.label, known)
            known = _read(folder)
        else:
            self.num_read = 0
        if known is None:
            raise OSError("cannot be read")
        mapped_N, _, self.contents, self.unique = known
        # A plain array over the same pages is indexed several times faster than a mapped one.
        self.records_N = np.asarray(mapped_N)


def mixed(number_N: np.ndarray) -> np.ndarray:
    """Return hashes of (N,) uint64: the finalizer of SplitMix64 (doi:10.1145/2714064.2660195)."""
    number_N = (number_N ^ (number_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    number_N = (number_N ^ (number_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return number_N ^ (number_N >> np.uint64(31))


def _folders(storage: Storage, shards: Sequence[Shard], label: str) -> Iterator[Path]:
    """Yield folders for the index, the best first."""
    place = shards[0].place
    if not storage.far and os.access(folder_of(place), os.W_OK):
        key = _key([label, *(shard.name for shard in shards)])
        yield folder_of(place) / FOLDER / f"index-{key}"
    yield state_folder() / "shards" / _key([label, *(shard.place for shard in shards)])


def _key(names: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(names).encode("utf-8", "surrogateescape")).hexdigest()[:12]


Known = tuple[np.ndarray, list[dict], list[Contents], bool]


def _read(folder: Path) -> Known | None:
    """Return what an index holds; None if there is none that can be used."""
    with suppress(OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        meta = json.loads((folder / META).read_text())
        records_N = np.load(folder / RECORDS, mmap_mode="r")
        contents = [Contents(**found) for found in meta["contents"]]
        whole = sum(found.count for found in contents) == len(records_N)
        if meta["format"] == FORMAT and whole and records_N.dtype == RECORD:
            return records_N, meta["shards"], contents, bool(meta["unique"])
    return None


def _write(
    folder: Path, storage: Storage, shards: Sequence[Shard], label: str, known: Known | None
) -> int:
    """Write an index, with what is known; return how many shards were read.

    Records are written in order rather than mapped: on a full disk a write raises, where a store
    into mapped memory kills the process.
    """
    (folder / META).unlink(missing_ok=True)
    contents: list[Contents] = []
    unfinished, num_read = folder / f"{RECORDS}.partial", 0
    with open(unfinished, "wb") as file:
        _write_header(file, 0)
        title = f"indexing {shown(shards[0].name)}" + (", …" if len(shards) > 1 else "")
        pieces = _pieces(storage, shards, label, _by_shard(known) if known else {})
        for _, entries, fresh in with_bar(pieces, len(shards), title):
            num_read += fresh
            for records_M, found in entries:
                file.write(records_M.tobytes())
                contents.append(found)
        file.seek(0)
        _write_header(file, sum(found.count for found in contents))
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, folder / RECORDS)
    meta: dict[str, Any] = {"format": FORMAT, "shards": [asdict(shard) for shard in shards]}
    meta["contents"] = [asdict(found) for found in contents]
    key_N = np.sort(np.load(folder / RECORDS, mmap_mode="r")["key"])
    meta["unique"] = not bool((key_N[1:] == key_N[:-1]).any())
    write_atomically(folder / META, json.dumps(meta) + "\n")
    return num_read


def _write_header(file: IO[bytes], count: int) -> None:
    # numpy pads the header so that its length does not depend on the first axis.
    header = {"descr": RECORD.descr, "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(file, header)


Entry = tuple[np.ndarray, Contents]


def _by_shard(known: Known) -> dict[Shard, Entry]:
    records_N, shards, contents, _ = known
    entries, at = {}, 0
    for shard, found in zip(shards, contents, strict=True):
        entries[Shard(**shard)] = (records_N[at : at + found.count], found)
        at += found.count
    return entries


def _pieces(
    storage: Storage, shards: Sequence[Shard], label: str, old: dict[Shard, Entry]
) -> Iterator[tuple[Sequence[Shard], list[Entry], int]]:
    """Yield some shards, what is in each, and how many of them were read for it."""
    with ThreadPoolExecutor(FAR_WORKERS if storage.far else os.cpu_count() or 1) as pool:
        for start in range(0, len(shards), AT_ONCE):
            piece = shards[start : start + AT_ONCE]
            fresh = [shard for shard in piece if shard not in old]
            read = dict(zip(fresh, pool.map(partial(_scanned, storage, label), fresh), strict=True))
            yield piece, [read.get(shard) or old[shard] for shard in piece], len(fresh)


def _scanned(storage: Storage, label: str, shard: Shard) -> Entry:
    try:
        return retried(lambda _: scan(storage, shard, label), 0, shard.name)
    except BadImage as error:
        raise UserError(f"data.path: {shown(shard.place)}: {error.reason}") from error
