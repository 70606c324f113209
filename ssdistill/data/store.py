"""Pictures decoded once into one memory-mapped uint8 array of squares.

A picture is cropped to its central square, so a wide one loses its sides, and resized. Square
pictures of one size are what lets every later step work on whole batches, and a central crop is
what evaluation reads anyway. No label is read or kept here: ``Store.labels`` asks the source.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from ssdistill.data.splits import RawSplit, Source
from ssdistill.data.store_writer import refuse_bad, write_images
from ssdistill.errors import UserError

log = logging.getLogger(__name__)

FORMAT = 1
"""Part of every store's key: raise it when the same pictures would be stored differently."""
IMAGES, META = "images.npy", "store.json"


class Store:
    """One split's pictures at one size.

    Attributes:
        images: (N, H, W, 3) uint8, read-only, mapped from disk.
        names: of the N pictures, as the source has them.
        bad: (name, reason) of every picture left out.
        fingerprint: sha256 (hex) over pixels, names and size; labels are no part of it.
        mean, std: per channel over all pixels, in units of [0, 1].
        source, split: where it came from.
    """

    def __init__(self, folder: Path, source: Source, split: str):
        self.folder, self.source, self.split = folder, source, split
        try:
            meta = json.loads((folder / META).read_text())
            self.images: np.ndarray = np.load(folder / IMAGES, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise UserError(
                f"image store {folder} is damaged ({error}); delete it, it is made again"
            ) from error
        self.fingerprint: str = meta["fingerprint"]
        self.names: list[str] = meta["names"]
        self.bad: list[tuple[str, str]] = [(name, reason) for name, reason in meta["bad"]]
        self.mean: tuple[float, float, float] = tuple(meta["mean"])
        self.std: tuple[float, float, float] = tuple(meta["std"])
        self._bad_rows: list[int] = meta["bad_rows"]

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def labels(self) -> np.ndarray:
        """(N,) int64, asked of the source at the first use; UserError where it has none."""
        labels = self.source.split(self.split).labels()
        if len(labels) != len(self) + len(self.bad):
            raise UserError(f"the pictures of {self.folder} have changed since it was opened")
        return np.delete(labels, self._bad_rows)

    @cached_property
    def class_names(self) -> tuple[str, ...] | None:
        """Names by label, where the source has them apart from the labels."""
        return self.source.split(self.split).class_names


def open_store(
    source: Source, split: str, image_size: int, root: Path, max_bad: float = 0.05
) -> Store:
    """The store of a split, made below ``root`` if it is not there.

    It is found again by the source's kind and settings, the identity of its pictures and the
    size. Processes that want the same store at once wait for the one that makes it; a store
    appears complete or not at all. Unreadable pictures are left out and reported in one warning.

    Args:
        split: ``"train"`` or ``"test"``.
        image_size: side of a stored picture in pixels.
        max_bad: largest share of unreadable pictures.

    Raises:
        UserError: more unreadable pictures than ``max_bad``, none readable, a full disk, or a
            folder that cannot be written; whatever the source raises.
    """
    raw = source.split(split)
    key = _key(source, raw, split, image_size)
    folder = Path(root) / f"{source.kind}-{split}-{image_size}-{key[:12]}"
    if not (folder / META).exists():
        with _plain_disk_errors(Path(root)):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with _locked(folder):
                if not (folder / META).exists():
                    _make(folder, raw, image_size, max_bad)
    store = Store(folder, source, split)
    total = len(store) + len(store.bad)
    refuse_bad(raw.title, store.bad, total, max_bad)
    if store.bad:
        name, reason = store.bad[0]
        counts = f"{len(store.bad)} of {total} pictures cannot be read and are left out"
        log.warning("%s: %s, first %s (%s)", raw.title, counts, name, reason)
    return store


def _key(source: Source, raw: RawSplit, split: str, image_size: int) -> str:
    parts = [FORMAT, source.kind, source.settings, split, image_size, raw.identity()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    lock = FileLock(f"{folder}.lock")
    try:
        lock.acquire(timeout=1)
    except Timeout:
        log.warning("waiting for another process that is making %s", folder)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _plain_disk_errors(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason = "the disk is full; free some space or choose another folder"
        else:
            reason = error.strerror or str(error)
        raise UserError(f"cannot write the image store in {root}: {reason}") from error


def _make(folder: Path, raw: RawSplit, image_size: int, max_bad: float) -> None:
    """Fill ``<folder>.partial`` and rename it; the caller holds the lock."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        with open(partial / IMAGES, "wb") as file:
            meta = write_images(file, raw, image_size, max_bad)
            file.flush()
            os.fsync(file.fileno())
        (partial / META).write_text(json.dumps(meta))
        shutil.rmtree(folder, ignore_errors=True)  # without a json it is no store
        os.rename(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
