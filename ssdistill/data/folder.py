"""A folder of pictures: which files count, which class and which split each belongs to."""

import hashlib
import logging
import os
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from ssdistill.data.decode import read_image
from ssdistill.data.splits import RawSplit, Source
from ssdistill.errors import UserError

log = logging.getLogger(__name__)

EXTENSIONS = frozenset(
    (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
)
"""What a picture's name may end in, in lower case."""
TEST_FRACTION_LABELED, TEST_FRACTION_UNLABELED = 0.2, 0.1


def list_pictures(folder: Path) -> tuple[list[str], int]:
    """Relative names (with ``/``) of all pictures below ``folder``, sorted by code point.

    Linked folders are followed, except into one the walk is already in. Hidden folders are not
    entered; the second value counts the files left out: hidden ones, and names that do not end
    in one of ``EXTENSIONS``.
    """
    names: list[str] = []
    skipped = 0
    pending = [("", (os.path.realpath(folder),))]
    while pending:
        below, above = pending.pop()
        with os.scandir(folder / below) as entries:
            for entry in entries:
                hidden = entry.name.startswith(".")
                if entry.is_dir():
                    real = os.path.realpath(entry.path)
                    if not hidden and real not in above:
                        pending.append((f"{below}{entry.name}/", (*above, real)))
                elif hidden or os.path.splitext(entry.name)[1].lower() not in EXTENSIONS:
                    skipped += 1
                else:
                    names.append(below + entry.name)
    return sorted(names), skipped


@dataclass
class FileSplit(RawSplit):
    """Picture files below ``folder``; ``classes_N`` is each one's class, None if unlabeled."""

    title: str
    folder: Path
    names: list[str]
    classes_N: list[str] | None
    all_classes: tuple[str, ...]

    @property
    def labeled(self) -> bool:
        return self.classes_N is not None

    def __len__(self) -> int:
        return len(self.names)

    def image(self, i: int) -> np.ndarray:
        return read_image(self.folder / self.names[i])

    def name(self, i: int) -> str:
        return self.names[i]

    def identity(self) -> str:
        digest = hashlib.sha256()
        for name in self.names:
            # The time is part of it: bitmaps of one size in pixels are of one size in bytes.
            try:
                status = os.stat(self.folder / name)
                line = f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n"
            except OSError:  # a link to nothing; a bad picture, once it is read
                line = f"{name}\0missing\n"
            digest.update(line.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def labels(self) -> np.ndarray:
        if self.classes_N is None:
            return super().labels()
        position = {name: k for k, name in enumerate(self.all_classes)}
        return np.array([position[name] for name in self.classes_N], dtype=np.int64)

    @property
    def class_names(self) -> tuple[str, ...] | None:
        return self.all_classes if self.labeled else None


@dataclass(frozen=True)
class Layout:
    """What was found in a folder; ``skipped`` counts the files that are left out."""

    train: FileSplit
    test: FileSplit
    skipped: int


def read_layout(folder: Path, test_fraction: float | None) -> Layout:
    """Sort the pictures below ``folder`` into splits and classes.

    ``folder/train`` with ``folder/test`` or ``folder/val`` beside it are taken as they are (of
    the two, the first that has class folders where ``train`` has them), and anything else is
    left out. Otherwise the test pictures are held out of all pictures, class by class. A
    picture's class is the topmost folder it sits in; pictures outside any make the split
    unlabeled.

    Args:
        test_fraction: share to hold out; None takes 0.2 with classes and 0.1 without.
    """
    names, skipped = list_pictures(folder)
    tops = {name.split("/")[0] for name in names}
    given = [part for part in ("test", "val") if part in tops]
    if "train" in tops and given:
        train = _below(names, "train")
        tests = [_below(names, part) for part in given]
        test = next((t for t in tests if _classes(train, 1) and _classes(t, 1)), tests[0])
        skipped += len(names) - len(train) - len(test)
        depth = 1
    else:
        depth = 1 if tops == {"train"} else 0
        train, test = _hold_out(names, _classes(names, depth), test_fraction)
    all_classes = tuple(sorted({*(_classes(train, depth) or ()), *(_classes(test, depth) or ())}))
    splits = [
        FileSplit(f"folder {folder} ({title})", folder, part, _classes(part, depth), all_classes)
        for title, part in (("train", train), ("test", test))
    ]
    return Layout(*splits, skipped)


def _below(names: list[str], top: str) -> list[str]:
    return [name for name in names if name.startswith(top + "/")]


def _classes(names: list[str], depth: int) -> list[str] | None:
    """Each name's folder at ``depth``; None where one has none there."""
    parts = [name.split("/") for name in names]
    return [p[depth] for p in parts] if all(len(p) > depth + 1 for p in parts) else None


def _hold_out(
    names: list[str], classes_N: list[str] | None, fraction: float | None
) -> tuple[list[str], list[str]]:
    """(train, test), both sorted: of every class, the names with the smallest hashes are test."""
    if fraction is None:
        fraction = TEST_FRACTION_UNLABELED if classes_N is None else TEST_FRACTION_LABELED
    groups: dict[str, list[str]] = defaultdict(list)
    for name, group in zip(names, classes_N or [""] * len(names), strict=True):
        groups[group].append(name)
    held_out: set[str] = set()
    for members in groups.values():
        count = round(fraction * len(members))
        count = min(max(count, int(fraction > 0)), len(members) - 1)
        held_out.update(sorted(members, key=_hash)[:count])
    return [n for n in names if n not in held_out], [n for n in names if n in held_out]


def _hash(name: str) -> bytes:
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()


class Folder(Source):
    """A folder of picture files, searched recursively.

    With ``path/train`` and ``path/test`` (or ``path/val``) those are the splits. Otherwise
    pictures are held out for ``test`` by a hash of their relative name, so that the same files
    give the same split anywhere. Pictures in class folders (``[train/]<class>/...``) are
    labeled; as soon as one lies outside any, all are unlabeled and ``test`` serves label-free
    measurements only. Hidden files and files that are no pictures are skipped and counted.

    Pictures of a folder have no common size. They are stored as squares of 64 pixels, which
    keeps 10 000 pictures at 123 MB and trains on a CPU; ``data.image_size`` sets another size.

    Args:
        path: the folder.
        test_fraction: share of each class held out where the folder has no test pictures of its
            own; by default 0.2 with classes and 0.1 without. 0 trains on everything.
    """

    kind = "folder"
    default_image_size = 64

    def __init__(
        self, *, path: str, test_fraction: Annotated[float, Field(ge=0, lt=1)] | None = None
    ):
        self.path, self.test_fraction = path, test_fraction

    @cached_property
    def _layout(self) -> Layout:
        folder = Path(self.path)
        if not folder.is_dir():
            reason = "is a file, not a folder" if folder.exists() else "no such folder"
            raise UserError(f"data.path={self.path}: {reason}")
        try:
            layout = read_layout(folder, self.test_fraction)
        except OSError as error:
            reason = f"cannot list {error.filename} ({error.strerror})"
            raise UserError(f"data.path={self.path}: {reason}") from error
        if not len(layout.train) + len(layout.test):
            raise UserError(
                f"data.path={self.path}: no pictures below this folder "
                f"({layout.skipped} other files)"
            )
        if layout.skipped:
            log.info("data.path=%s: skipped %d other files", self.path, layout.skipped)
        return layout

    @property
    def has_labels(self) -> bool:
        return self._layout.train.labeled and self._layout.test.labeled

    @property
    def description(self) -> str:
        layout = self._layout
        return (
            f"folder {Path(self.path).name}, {'labeled' if self.has_labels else 'unlabeled'}, "
            f"{len(layout.train)} train and {len(layout.test)} test pictures, "
            f"{layout.skipped} other files skipped"
        )

    def _split(self, name: str) -> RawSplit:
        split = getattr(self._layout, name)
        if not len(split):
            raise UserError(
                f"data.path={self.path} has no {name} pictures (test_fraction={self.test_fraction})"
            )
        return split
