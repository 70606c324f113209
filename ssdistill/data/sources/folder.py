"""An image folder: find its files, splits and classes."""

import hashlib
import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated

from pydantic import Field

from ssdistill.data.file_split import FileSplit
from ssdistill.data.listing import EXTENSIONS, Listing, list_images
from ssdistill.data.split_names import name_warnings, says_nothing, split_folders, split_of
from ssdistill.data.splits import RawSplit, Source
from ssdistill.errors import UserError, shown
from ssdistill.files import user_path

log = logging.getLogger(__name__)

TEST_FRACTION_LABELED, TEST_FRACTION_UNLABELED = 0.2, 0.1
UNLABELED = 1 << 20
"""A depth below every image, so that all are unlabeled."""
ONE_EACH = (
    "each of the {} images has a folder of its own, so folders are not classes and the images "
    "are unlabeled; put all images of one class into one folder"
)
STRAY = (
    "{} of {} images are in no class folder (first: {}), so all are unlabeled and evaluation "
    "is skipped; move them into class folders or out of data.path"
)
TRAINABLE = 2
"""With at most this many images, none is held out by default."""


@dataclass(frozen=True)
class Layout:
    """Splits and classes of the images of a folder.

    Attributes:
        listing: all that is below the folder.
        skipped: how many files are ignored.
        split_warnings: what looks like splits but is not used as such, one line each.
        class_warnings: what speaks against class folders being classes.
    """

    train: FileSplit
    test: FileSplit
    listing: Listing
    skipped: int
    split_warnings: tuple[str, ...]
    class_warnings: tuple[str, ...]


def read_layout(folder: Path, test_fraction: float | None) -> Layout:
    """Sort the images below ``folder`` into splits and classes.

    A folder called ``train`` with one called ``test`` or ``val`` beside it, or other words for
    them (:mod:`ssdistill.data.split_names`), are used as splits (of several, the first that
    has class folders where ``train`` has them), and anything else is ignored; they may lie in a
    wrapping folder without a meaning, such as ``data``. Otherwise the test
    images are held out of all images, class by class. An image's class is the topmost folder
    it sits in; images outside any make the split unlabeled, and so does one folder for every
    image.

    Args:
        test_fraction: fraction to hold out; None takes 0.2 with classes and 0.1 without.

    Raises:
        UserError: several folders that could be the training images.
    """
    listing = list_images(folder)
    names, skipped = listing.names, listing.skipped
    top = _below_wrapping(names, 0)
    first, others = split_folders({n.split("/")[top] for n in names if n.count("/") > top})
    own = bool(first and others)
    if own and first:
        train, test = _own_splits(names, first, others, top)
        depths = [_below_wrapping(part, top + 1) for part in (train, test)]
        skipped += len(names) - len(train) - len(test)
        warnings = _stray(train, depths[0], test, depths[1])
    else:
        depth = top
        if {name.split("/")[top] for name in names} == {first}:
            depth = _below_wrapping(names, top + 1)
        classes_N, warnings = _classes(names, depth), _stray(names, depth, [], depth)
        if classes_N and len(names) > 1 and len(set(classes_N)) == len(names):
            warnings, classes_N = (ONE_EACH.format(len(names)),), None
        depths = [UNLABELED if classes_N is None else depth] * 2
        train, test = _hold_out(names, classes_N, test_fraction)
    train_files, test_files = _file_splits(folder, (train, test), depths)
    classes = train_files.class_names or ()
    of_splits, of_classes = name_warnings(str(folder), names, classes, depths[0], not own)
    warnings = (*warnings, *of_classes)
    return Layout(train_files, test_files, listing, skipped, of_splits, warnings)


def _file_splits(
    folder: Path, parts: Sequence[list[str]], depths: Sequence[int]
) -> list[FileSplit]:
    """Build the training and test split, with the classes at the depth of each."""
    classes = [_classes(names, depth) for names, depth in zip(parts, depths, strict=True)]
    all_classes = tuple(sorted({name for names in classes for name in names or ()}))
    return [
        FileSplit(f"folder {shown(folder)} ({title})", folder, names, classes_N, all_classes)
        for title, names, classes_N in zip(("train", "test"), parts, classes, strict=True)
    ]


def _below_wrapping(names: list[str], depth: int) -> int:
    """Return the depth below folders that wrap everything and carry no class.

    Such are ``images`` and ``data``, and a ``train`` within ``train``, as archives unpack.
    """
    while names and all(name.count("/") > depth for name in names):
        above, folder = ("", *names[0].split("/"))[depth : depth + 2]
        again = folder == above or (split_of(folder) and split_of(folder) == split_of(above))
        if not (again or says_nothing(folder)) or len({n.split("/")[depth] for n in names}) > 1:
            break
        depth += 1
    return depth


def _own_splits(
    names: list[str], first: str, others: list[str], top: int
) -> tuple[list[str], list[str]]:
    """Return the training images, and those of the first test folder that is labeled alike."""

    def labeled(part: list[str]) -> bool:
        return bool(_classes(part, _below_wrapping(part, top + 1)))

    train, *tests = ([n for n in names if n.split("/")[top] == p] for p in (first, *others))
    return train, next((test for test in tests if labeled(train) and labeled(test)), tests[0])


def _stray(names: list[str], depth: int, test: list[str], test_depth: int) -> tuple[str, ...]:
    """Warn if a few images outside any class folder make the whole set unlabeled.

    Args:
        names: the training images, or all.
        test: the test images where they have a folder of their own.
    """
    outside = [name for name in names if name.count("/") <= depth]
    classes = {name.split("/")[depth] for name in names if name.count("/") > depth}
    labeled = len(names) - len(outside)
    outside += [name for name in test if name.count("/") <= test_depth]
    if not outside or len(classes) < 2 or labeled <= len(names) - labeled:
        return ()
    return (STRAY.format(len(outside), len(names) + len(test), shown(outside[0])),)


def _classes(names: list[str], depth: int) -> list[str] | None:
    """Return the folder of each name at ``depth``; None if one has none there."""
    parts = [name.split("/") for name in names]
    return [p[depth] for p in parts] if all(len(p) > depth + 1 for p in parts) else None


def _hold_out(
    names: list[str], classes_N: list[str] | None, fraction: float | None
) -> tuple[list[str], list[str]]:
    """Return (train, test), both sorted; in each class, names with the smallest hashes are test."""
    if fraction is None:
        fraction = TEST_FRACTION_UNLABELED if classes_N is None else TEST_FRACTION_LABELED
        if len(names) <= TRAINABLE:
            fraction = 0.0
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
    """A folder of image files, searched recursively.

    With ``path/train`` and ``path/test`` (or ``val``, ``Training`` and ``Testing``, …) those are
    the splits. Otherwise images are held out for ``test`` by a hash of their relative name, so
    that the same files give the same split anywhere. Images in class folders
    (``[train/]<class>/...``) are labeled; as soon as one lies outside any, or each has a folder
    of its own, all are unlabeled and ``test`` serves label-free measurements only. An image is
    a file that is named like one (``.jpg``, ``.png``, ``.tif``, …) or begins like one and has no
    suffix; its content decides how it is read. One that cannot be read is skipped and named, and
    more than ``data.max_bad`` of them are refused. Hidden files, ``__MACOSX`` and files that are
    no images are skipped and counted.

    Images of a folder have no common size. They are stored as squares of 64 pixels, which
    keeps 10,000 images at 123 MB and trains on a CPU; ``data.image_size`` sets another size.

    Args:
        path: the folder.
        test_fraction: fraction of each class held out where the folder has no test images of its
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
        folder = user_path(self.path)
        if not folder.is_dir():
            reason = "is a file, not a folder" if folder.exists() else "no such folder"
            raise UserError(f"data.path={shown(self.path)}: {reason}")
        try:
            layout = read_layout(folder, self.test_fraction)
        except OSError as error:
            reason = f"cannot list {shown(error.filename)} ({error.strerror})"
            raise UserError(f"data.path={shown(self.path)}: {reason}") from error
        if not len(layout.train):
            raise UserError(f"data.path={shown(self.path)}: {_nothing(layout)}")
        if layout.skipped:
            log.info("data.path=%s: skipped %d other files", self.path, layout.skipped)
        return layout

    @property
    def has_labels(self) -> bool:
        return self.has_test and self._layout.train.labeled and self._layout.test.labeled

    @property
    def has_test(self) -> bool:
        return len(self._layout.test) > 0

    def warnings(self, labels: bool) -> tuple[str, ...]:
        layout = self._layout
        return (*layout.split_warnings, *(layout.class_warnings if labels else ()))

    @property
    def description(self) -> str:
        layout = self._layout
        return (
            f"folder {shown(Path(self.path).name)}, "
            f"{'labeled' if self.has_labels else 'unlabeled'}, "
            f"{len(layout.train)} train and {len(layout.test)} test images, "
            f"{layout.skipped} other files skipped"
        )

    def _split(self, name: str) -> RawSplit:
        split = getattr(self._layout, name)
        if not len(split):
            raise UserError(
                f"data.path={shown(self.path)} has no {name} images; raise "
                f"data.test_fraction (now {self.test_fraction})"
            )
        return split


def _nothing(layout: Layout) -> str:
    """Explain why there is no image to train on."""
    if len(layout.test):
        return "no images below its training folder"
    known = ", ".join(sorted(EXTENSIONS))
    seen = ", ".join(f"{count} {suffix}" for suffix, count in layout.listing.others.most_common(5))
    seen = f": {shown(seen)}" if seen else ""
    return (
        f"no images below this folder ({layout.skipped} other files){seen}; image files "
        f"end in {known}, or have no suffix"
    )
