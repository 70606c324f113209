"""Write shards in parallel; an interrupted packing resumes.

Equal images and settings yield equal bytes: headers hold neither times nor owners.
"""

import hashlib
import json
import logging
import os
import re
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from threading import Event, Lock
from typing import IO, Any

from ssdistill.data.bad_image import BadImage
from ssdistill.data.packing.checksums import CHECKSUMS
from ssdistill.data.packing.encoding import member, smaller
from ssdistill.data.packing.loss import Loss, measure
from ssdistill.data.progress import with_bar
from ssdistill.data.shards.labels import LabelFiles, label_files
from ssdistill.data.shards.members import BLOCK
from ssdistill.data.splits import SPLITS, RawSplit, Source
from ssdistill.data.store_writer import check_bad_fraction
from ssdistill.errors import UserError, shown
from ssdistill.files import disk_errors, locked_by, write_atomically

log = logging.getLogger(__name__)

FORMAT = 1
"""Increase it whenever the same images and settings yield other bytes."""
META, CLASSES = "pack.json", "classes.txt"
SHARD = re.compile(r"(train|test)-\d{6,}\.tar")
OWN = {META, CHECKSUMS, CLASSES, ".pack.lock", ".ssdistill"}
"""Files in a folder of shards that are not shards."""


@dataclass(frozen=True)
class Packing:
    """How to pack images.

    Attributes:
        short_side: shorter side in pixels that larger images are scaled to; None keeps originals.
        quality: JPEG quality of downscaled images, from 1 to 100.
        labels: whether to write the class of each image to a ``.cls`` file.
        shard_images: maximum number of images per shard.
    """

    short_side: int | None = None
    quality: int = 90
    labels: bool = False
    shard_images: int = 2000


@dataclass
class PackedShard:
    """The content of one shard.

    Attributes:
        images: number of images.
        kept: number of images that were not changed.
        original_bytes: size of these images in the source.
        left_out: (name, reason) of images that could not be read.
    """

    bytes: int = 0
    sha256: str = ""
    images: int = 0
    kept: int = 0
    original_bytes: int = 0
    left_out: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class Packed:
    """A folder of shards.

    Attributes:
        shards: by name, starting with ``train``.
        loss: of views, in dB; None if no image was downscaled.
        num_new: number of shards written by this call.
    """

    shards: dict[str, PackedShard]
    loss: Loss | None
    num_new: int


def pack(source: Source, folder: Path, packing: Packing, max_bad: float = 0.05) -> Packed:
    """Write the images of a source as shards ``train-000000.tar``, … and ``test-000000.tar``, ….

    Names and order are those of the source. Finished shards of an interrupted packing are reused.

    Args:
        max_bad: largest fraction of unreadable images in a split; these are skipped.

    Raises:
        UserError: the folder holds something else, too many images are unreadable, or labels are
            requested and the source has none.
    """
    names = [name for name in SPLITS if name == "train" or source.has_test]
    splits, bands = {name: source.split(name) for name in names}, source.any_bands
    if bands and packing.short_side is not None:
        raise UserError(
            "--short-side writes JPEGs of 8-bit RGB, but data.channels is set; remove one of them"
        )
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        waiting = partial(log.warning, "waiting for another process to pack into %s", folder)
        with locked_by(folder / ".pack.lock", waiting, patience=1):
            task = {"format": FORMAT, **asdict(packing)} | ({"bands": True} if bands else {})
            task["images"] = {name: split.identity() for name, split in splits.items()}
            work = _Work(folder, task, _finished(folder, task), packing, bands)
            for name, split in splits.items():
                work.write(name, split, max_bad)
            loss = None
            if packing.short_side is not None:
                loss = measure(splits["train"], packing.short_side, packing.quality)
            _write_classes(folder, splits["train"], packing)
            lines = (f"{shard.sha256}  {name}\n" for name, shard in sorted(work.done.items()))
            write_atomically(folder / CHECKSUMS, "".join(lines))
    order = sorted(work.done, key=lambda name: (SPLITS.index(name.split("-")[0]), name))
    return Packed({name: work.done[name] for name in order}, loss, work.num_new)


def _finished(folder: Path, task: dict[str, Any]) -> dict[str, PackedShard]:
    """Return the shards already finished for the same task.

    Raises:
        UserError: the folder holds something else.
    """
    if not (folder / META).exists():
        others = [name for name in sorted(os.listdir(folder)) if name not in OWN]
        if others:
            raise UserError(
                f"--to {folder}: holds other files (first: {shown(others[0])}); pass a new folder"
            )
        return {}
    try:
        content = json.loads((folder / META).read_text())
        former = dict(content["task"])
        shards = {str(name): PackedShard(**shard) for name, shard in content["shards"].items()
                  if SHARD.fullmatch(name)}  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(
            f"{folder / META}: damaged; delete the folder and pack the images again"
        ) from None
    if former != task:
        changed = ", ".join(key for key in task if former.get(key) != task[key])
        raise UserError(
            f"--to {folder}: packed from other images or with other settings ({changed}); pass a "
            "new folder, or delete this one"
        )
    return {name: shard for name, shard in shards.items() if _has_size(folder / name, shard.bytes)}


def _has_size(path: Path, size: int) -> bool:
    with suppress(OSError):
        return path.stat().st_size == size
    return False


class _Work:
    """The shards of one folder; ``done`` holds the finished ones."""

    def __init__(
        self,
        folder: Path,
        task: dict[str, Any],
        done: dict[str, PackedShard],
        packing: Packing,
        bands: bool = False,
    ):
        self.folder, self.task, self.done, self.packing = folder, task, dict(done), packing
        self.bands = bands
        self.num_new = 0
        self._stop, self._lock = Event(), Lock()

    def write(self, name: str, split: RawSplit, max_bad: float) -> None:
        labels = _label_files(split) if self.packing.labels else None
        left_out: list[tuple[str, str]] = []
        for _, shard in with_bar(
            self._shards(name, split, labels), len(split), f"packing {split.title}"
        ):
            left_out += [(name, reason) for name, reason in shard.left_out]
            check_bad_fraction(split.title, left_out, len(split), max_bad)

    def _shards(
        self, name: str, split: RawSplit, labels: LabelFiles | None
    ) -> Iterator[tuple[range, PackedShard]]:
        length = self.packing.shard_images
        parts = [range(at, min(at + length, len(split))) for at in range(0, len(split), length)]
        names = [f"{name}-{k:06d}.tar" for k in range(len(parts))]
        pool = ThreadPoolExecutor(os.cpu_count() or 1)
        try:
            yield from zip(
                parts, pool.map(partial(self._shard, split, labels), names, parts), strict=True
            )
        finally:
            self._stop.set()
            pool.shutdown(cancel_futures=True)
            self._stop.clear()

    def _shard(
        self, split: RawSplit, labels: LabelFiles | None, name: str, rows: range
    ) -> PackedShard:
        if name in self.done:
            return self.done[name]
        shard, unfinished = PackedShard(), self.folder / f"{name}.partial"
        with open(unfinished, "wb") as file:
            output = _Hashed(file)
            for row in rows:
                if self._stop.is_set():
                    raise InterruptedError
                self._add(output, shard, split, row, labels)
            output.write(bytes(2 * BLOCK))
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, self.folder / name)
        shard.bytes, shard.sha256 = output.count, output.digest.hexdigest()
        with self._lock:
            self.done[name] = shard
            self.num_new += 1
            self._record()
        return shard

    def _add(
        self,
        output: "_Hashed",
        shard: PackedShard,
        split: RawSplit,
        row: int,
        labels: LabelFiles | None,
    ) -> None:
        side, reduced = self.packing.short_side, None
        try:
            name, content = member(split, row, bands=self.bands)
            if side is not None:
                reduced = smaller(content, side, self.packing.quality)
        except BadImage as error:
            shard.left_out.append((split.name(row), error.reason))
            return
        shard.images += 1
        shard.kept += reduced is None
        shard.original_bytes += len(content)
        if reduced is not None:
            name, content = f"{name.rpartition('.')[0]}.jpg", reduced
        output.member(name, content)
        if labels is not None:
            folder, slash, file = name.rpartition("/")
            group = file.split(".")[0]
            output.member(f"{folder}{slash}{group}.cls", labels(row))

    def _record(self) -> None:
        shards = {name: asdict(shard) for name, shard in sorted(self.done.items())}
        content = json.dumps({"task": self.task, "shards": shards}, indent=1)
        write_atomically(self.folder / META, content + "\n")


class _Hashed:
    """Write members of an archive, and hash the output."""

    def __init__(self, file: IO[bytes]):
        self.file, self.digest, self.count = file, hashlib.sha256(), 0

    def write(self, content: bytes) -> None:
        self.file.write(content)
        self.digest.update(content)
        self.count += len(content)

    def member(self, name: str, content: bytes) -> None:
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(content), 0o644
        self.write(info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))
        self.write(content)
        self.write(bytes(-len(content) % BLOCK))


def _label_files(split: RawSplit) -> LabelFiles:
    try:
        return label_files(split)
    except UserError as error:
        raise UserError(f"{error}; omit --labels to pack the images without labels") from error


def _write_classes(folder: Path, split: RawSplit, packing: Packing) -> None:
    names = split.class_names if packing.labels else None
    if names is not None:
        write_atomically(folder / CLASSES, "".join(f"{name}\n" for name in names))
