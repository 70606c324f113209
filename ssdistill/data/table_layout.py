"""Find the files of a source of tables, and sort their rows into splits."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ssdistill.data.held_out import fraction_of, held_out_by_key
from ssdistill.data.list_columns import Wanted
from ssdistill.data.split_names import split_of_file
from ssdistill.data.table_columns import image_column, label_column
from ssdistill.data.table_split import Labels, Shard, TableSplit, labels_of, row_keys
from ssdistill.errors import UserError, shown
from ssdistill.files import user_path

CACHES = ("cache-", "tmp")
"""Beginnings of names of files that Hugging Face leaves beside its tables."""
File = TypeVar("File")


@dataclass
class TableLayout:
    """The splits of some tables, and what a user should know of them."""

    train: TableSplit
    test: TableSplit
    warnings: list[str] = field(default_factory=list)


def find_files(paths: Sequence[str], suffixes: Sequence[str]) -> list[tuple[str, Path]]:
    """Return the files of some paths, each with its name relative to the folder; sorted.

    Args:
        paths: files, folders, and patterns with ``*``.
        suffixes: of files in a folder.

    Raises:
        UserError: a path with nothing in it.
    """
    found: dict[Path, str] = {}
    for text in paths:
        path = user_path(text)
        if path.is_dir():
            files = [file for file in sorted(path.rglob("*")) if _is_table(file, path, suffixes)]
            named = [(file.relative_to(path).as_posix(), file) for file in files]
        elif any(mark in path.name for mark in "*?["):
            named = [(file.name, file) for file in sorted(path.parent.glob(path.name))]
        else:
            named = [(path.name, path)]
        if not named:
            raise UserError(
                f"data.path={shown(text)}: no {' or '.join(suffixes)} file; name a file, or a "
                "folder with some"
            )
        for name, file in named:
            if file not in found:
                # Names of images are unique.
                found[file] = f"{len(found)}/{name}" if name in found.values() else name
    return [(name, file) for file, name in found.items()]


def _is_table(file: Path, folder: Path, suffixes: Sequence[str]) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    kept = not hidden and not file.name.startswith(CACHES)
    return kept and file.suffix.lower() in suffixes and file.is_file()


def sort_files(
    files: Sequence[tuple[str, File]],
) -> tuple[list[tuple[str, File]], list[tuple[str, File]], list[str]]:
    """Sort files into those to train on and to test on by their names; name those left out.

    Where train and test (or val) are not both there, all are to train on.
    """
    by_split: dict[str | None, list[tuple[str, File]]] = {}
    for name, file in files:
        by_split.setdefault(split_of_file(name), []).append((name, file))
    other = "test" if "test" in by_split else "val"
    if "train" not in by_split or other not in by_split:
        return list(files), [], []
    left_out = [n for split, some in by_split.items() if split not in ("train", other)
                for n, _ in some]  # fmt: skip
    return by_split["train"], by_split[other], left_out


def use_columns(
    shards: Sequence[Any],
    column: str | None,
    label: str | None,
    title: str,
    each: Wanted = None,
) -> Labels | None:
    """Have shards read their column of images; return where labels are, if everywhere the same.

    Args:
        each: columns of 0 and 1 for each class, see :func:`label_column`.

    Raises:
        UserError: a shard without these columns.
    """
    images = image_column(shards[0].schema, column, title)
    labels = label_column(shards[0].schema, label, title, each)
    for shard in shards:
        of_it = f"data.path={shown(shard.path)}"
        shard.use(image_column(shard.schema, images, of_it))
        if labels:
            for name in labels.columns:
                label_column(shard.schema, name, of_it)
    return labels


def table_layout(
    title: str,
    train: Sequence[Shard],
    test: Sequence[Shard],
    labels: Labels | None,
    test_fraction: float | None,
) -> TableLayout:
    """Return the splits; where there is no test table, rows are held out by hashes.

    A row's hash follows from the name of its table and its number.

    Args:
        title: of the source in messages, such as ``data.path=…``.
    """
    shards = [*train, *test]
    num_train = sum(map(len, train))
    if not num_train:
        raise UserError(f"{title}: the tables have no rows to train on")
    classes = labels_of(shards, labels, title, TableSplit(title, shards, None).name)
    names = labels.names if labels else None

    def split(name: str, some: Sequence[Shard], row_N: Any, first: int = 0) -> TableSplit:
        return TableSplit(f"{title} ({name})", some, classes, names, row_N, first)

    if test:
        return TableLayout(split("train", train, None), split("test", test, None, num_train))
    key_N = np.concatenate([row_keys(shard.name, len(shard)) for shard in train])
    test_N = held_out_by_key(key_N, fraction_of(test_fraction, num_train, labels is not None))
    rows = [np.flatnonzero(chosen_N).astype(np.uint32) for chosen_N in (~test_N, test_N)]
    return TableLayout(split("train", train, rows[0]), split("test", train, rows[1]))
