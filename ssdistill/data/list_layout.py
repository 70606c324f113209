"""Sort the images of a list into splits."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

import numpy as np

from ssdistill.data.held_out import fraction_of, held_out_by_key
from ssdistill.data.list_file import ListFile
from ssdistill.data.list_split import ListClasses, ListSplit
from ssdistill.data.names import Names, NameWriter
from ssdistill.data.split_names import WORDS, split_of
from ssdistill.errors import UserError, shown

MOST_SPLITS = 100
"""Maximum number of distinct values in a column of splits."""
MOST_MISSING = 5
"""Missing files named in a message."""


@dataclass
class Entries:
    """The entries of a list, without labels and weights.

    Attributes:
        names: (N,) paths.
        split_N: (N,) int8 positions in ``SPLITS``; None without a column of splits.
        group_N: (N,) uint64 hashes of groups; of the path for an image without a group.
    """

    names: Names
    split_N: np.ndarray | None
    group_N: np.ndarray


@dataclass
class ListLayout:
    """The splits of a list, and warnings about them."""

    train: ListSplit
    test: ListSplit
    warnings: list[str] = field(default_factory=list)


SPLITS = ("train", "test", "val")


def read_entries(file: ListFile) -> Entries:
    """Read paths, splits and groups.

    Raises:
        UserError: a row has no path, or an unknown split.
    """
    roles = [role for role in ("path", "split", "group") if role in file.columns]
    at = {role: k for k, role in enumerate(roles)}
    writer, splits, groups = NameWriter(), array("b"), array("Q")
    number_of: dict[str, int] = {}
    for number, row in enumerate(file.rows(*roles), start=1):
        if not row[0]:
            raise UserError(f"{file.title}: row {number} has no path; remove the row")
        writer.add(row[0].removeprefix("./"))
        if "split" in at:
            value = row[at["split"]]
            if value not in number_of:
                number_of[value] = _split_number(file, value, number, len(number_of))
            splits.append(number_of[value])
        if "group" in at:
            groups.append(_hash(row[at["group"]]) if row[at["group"]] else 0)
    names = writer.names()
    group_N = names.hashes()
    if "group" in at:
        listed_N = np.frombuffer(groups, dtype=np.uint64)
        group_N = np.where(listed_N > 0, listed_N, group_N)
    split_N = np.frombuffer(splits, dtype=np.int8) if "split" in at else None
    return Entries(names, split_N, group_N)


def _hash(text: str) -> int:
    encoded = text.encode("utf-8", "surrogateescape")
    return int.from_bytes(blake2b(encoded, digest_size=8).digest(), "little") | 1


def _split_number(file: ListFile, value: str, number: int, num_values: int) -> int:
    split = split_of(value) if num_values < MOST_SPLITS else None
    if split is None:
        column = shown(file.columns.name.get("split", ""))
        words = ", ".join(WORDS[name][0] for name in SPLITS)
        raise UserError(
            f"{file.title}: unknown split {shown(value)[:60]!r} in column '{column}', row {number}"
            f"; write {words}, or set data.split_column=none"
        )
    return SPLITS.index(split)


def read_list(
    file: ListFile,
    root: Path,
    test_fraction: float | None,
    separator: str | None,
    skip_missing: bool,
) -> ListLayout:
    """Sort the images of a list into splits, and check that every file exists.

    A column of splits determines the test images; ``val`` is used if there is no ``test``. Without
    such a column, or if all images are for training, images are held out by a hash of their group
    or path.

    Raises:
        UserError: files are missing, or there is nothing to train on.
    """
    entries = read_entries(file)
    names = entries.names
    labeled = file.labeled
    if not len(names):
        raise UserError(f"{file.title}: the list has no images; write one path per row")
    train_N, test_N = _split_masks(entries, test_fraction, labeled)
    warnings = [*_repeated(file, entries), *_split_warnings(file, entries, train_N, test_N)]
    if not train_N.any():
        raise UserError(f"{file.title}: no image is in split train; add some")
    used_N = train_N | test_N
    classes = None
    if labeled:
        classes = ListClasses(
            file.labels,
            file.path_of,
            file.title,
            used_N,
            separator,
            columns=file.class_columns,
        )
    weights = (lambda: file.rows("weight")) if "weight" in file.columns else None
    if weights:
        warnings.append(
            f"{file.title}: training draws images by the weights in column "
            f"'{shown(file.columns.name['weight'])}', with replacement; set "
            "data.weight_column=none to draw every image equally often"
        )

    def split(name: str, chosen_N: np.ndarray) -> ListSplit:
        row_N = np.flatnonzero(chosen_N).astype(np.uint32)
        part = names if chosen_N.all() else names[row_N]
        return ListSplit(f"list {file.path} ({name})", root, part, row_N, classes, weights)

    splits = [split("train", train_N), split("test", test_N)]
    missing = [part.row_N[part.missing] for part in splits]
    if any(map(len, missing)):
        rows = np.sort(np.concatenate(missing))
        warnings.append(_missing(file, root, names, rows, skip_missing))
        for part, rows in zip((train_N, test_N), missing, strict=True):
            part[rows] = False
        # Skipped images need no labels; the classes share this array.
        used_N &= train_N | test_N
        splits = [split("train", train_N), split("test", test_N)]
    return ListLayout(splits[0], splits[1], warnings)


def _split_masks(
    entries: Entries, test_fraction: float | None, labeled: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return two masks, (N,) bool: training images and test images."""
    split_N = entries.split_N
    if split_N is not None and (split_N > 0).any():
        return split_N == 0, split_N == (1 if (split_N == 1).any() else 2)
    fraction = fraction_of(test_fraction, len(entries.names), labeled)
    test_N = held_out_by_key(entries.group_N, fraction)
    return ~test_N, test_N


def _missing(file: ListFile, root: Path, names: Names, rows: np.ndarray, skip: bool) -> str:
    """Return a warning about missing files; raise UserError unless they are to be skipped."""
    raw = [names[int(row)] for row in rows[:MOST_MISSING]]
    first = list(map(shown, raw))
    more = ", …" if len(rows) > MOST_MISSING else ""
    facts = f"{file.title}: {len(rows)} of {len(names)} files are missing below {shown(root)}"
    facts += f" (first: {', '.join(first)}{more})"
    if skip and len(rows) < len(names):
        return f"{facts}; skipping them"
    hint = "set data.root to the folder that paths are relative to, or correct the list"
    if not skip and len(rows) < len(names):
        hint += ", or set data.missing=skip"
    text = "".join(raw)
    if "\\" in text:
        hint = "write the paths with / instead of \\"
    elif any("\udc80" <= c <= "\udcff" for c in text):
        hint = "the list is not UTF-8; set data.encoding, such as cp1252"
    elif not file.delimited and any(" " in name for name in raw):
        hint += "; a line holds a path and optionally a number, write CSV for more columns"
    raise UserError(f"{facts}; {hint}")


def _repeated(file: ListFile, entries: Entries) -> list[str]:
    """Warn about paths that occur more than once."""
    hash_N = entries.names.hashes()
    unique_K, first_K = np.unique(hash_N, return_index=True)
    num_repeated = len(hash_N) - len(unique_K)
    if not num_repeated:
        return []
    repeated = np.ones(len(hash_N), dtype=bool)
    repeated[first_K] = False
    name = shown(entries.names[int(np.flatnonzero(repeated)[0])])
    return [
        f"{file.title}: {num_repeated} of {len(hash_N)} paths repeat earlier ones (first: {name}), "
        "so those images count several times; remove them unless this is intended"
    ]


def _split_warnings(
    file: ListFile, entries: Entries, train_N: np.ndarray, test_N: np.ndarray
) -> Sequence[str]:
    """Warn about images in no split, and about groups and images in both."""
    warnings = []
    unused = int((~(train_N | test_N)).sum())
    if unused:
        warnings.append(
            f"{file.title}: ignoring {unused} images of split val, since there is a split test"
        )
    both = np.intersect1d(entries.group_N[train_N], entries.group_N[test_N])
    if len(both):
        items = "groups" if "group" in file.columns else "images"
        row = int(np.flatnonzero(np.isin(entries.group_N, both))[0])
        warnings.append(
            f"{file.title}: {len(both)} {items} are in both train and test (first: "
            f"{shown(entries.names[row])}), which inflates evaluation results; move each to one"
        )
    return warnings
