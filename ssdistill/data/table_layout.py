"""Find the files of a table source, and sort their rows into splits."""

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
from ssdistill.errors import NO_FILE, UserError, shown
from ssdistill.files import user_path

CACHES = ("cache-", "tmp")
"""Prefixes of cache files that Hugging Face writes next to tables."""
File = TypeVar("File")


@dataclass
class TableLayout:
    """The splits of a table source, and warnings about them."""

    train: TableSplit
    test: TableSplit
    warnings: list[str] = field(default_factory=list)


def find_files(paths: Sequence[str], suffixes: Sequence[str]) -> list[tuple[str, Path]]:
    """Return the names (relative to their folder) and paths of table files, sorted.

    Args:
        paths: files, folders, and patterns with ``*``.
        suffixes: of table files in folders.

    Raises:
        UserError: a path matches no file.
    """
    name_of: dict[Path, str] = {}
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
            reason = f"no {' or '.join(suffixes)} file in it" if path.is_dir() else NO_FILE
            raise UserError(
                f"data.path={shown(text)}: {reason}; pass a file, or a folder that contains some"
            )
        for name, file in named:
            if file not in name_of:
                # Names of images must be unique.
                taken = name in name_of.values()
                name_of[file] = f"{len(name_of)}/{name}" if taken else name
    return [(name, file) for file, name in name_of.items()]


def _is_table(file: Path, folder: Path, suffixes: Sequence[str]) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    excluded = hidden or file.name.startswith(CACHES)
    return not excluded and file.suffix.lower() in suffixes and file.is_file()


def sort_files(
    files: Sequence[tuple[str, File]],
) -> tuple[list[tuple[str, File]], list[tuple[str, File]], list[str]]:
    """Sort files by name into training and test files; also return the names of ignored ones.

    Without both train and test (or val), all files are for training.
    """
    by_split: dict[str | None, list[tuple[str, File]]] = {}
    for name, file in files:
        by_split.setdefault(split_of_file(name), []).append((name, file))
    other = "test" if "test" in by_split else "val"
    if "train" not in by_split or other not in by_split:
        return list(files), [], []
    ignored = [name for split, pairs in by_split.items() if split not in ("train", other)
               for name, _ in pairs]  # fmt: skip
    return by_split["train"], by_split[other], ignored


def use_columns(
    shards: Sequence[Any],
    column: str | None,
    label: str | None,
    title: str,
    each: Wanted = None,
) -> Labels | None:
    """Select the column of images in all shards; return the columns of labels, if any.

    Args:
        each: columns of 0 and 1, one for each class, see :func:`label_column`.

    Raises:
        UserError: a shard lacks one of these columns.
    """
    images = image_column(shards[0].schema, column, title)
    labels = label_column(shards[0].schema, label, title, each)
    for shard in shards:
        shard_title = f"data.path={shown(shard.path)}"
        shard.use(image_column(shard.schema, images, shard_title))
        if labels:
            for name in labels.columns:
                label_column(shard.schema, name, shard_title)
    return labels


def table_layout(
    title: str,
    train: Sequence[Shard],
    test: Sequence[Shard],
    labels: Labels | None,
    test_fraction: float | None,
) -> TableLayout:
    """Return the splits; without test tables, rows are held out by hashes.

    The hash of a row depends on the name of its table and its number.

    Args:
        title: of the source in messages, such as ``data.path=…``.
    """
    shards = [*train, *test]
    num_train = sum(map(len, train))
    if not num_train:
        raise UserError(f"{title}: the tables have no training rows; add some")
    classes = labels_of(shards, labels, title, TableSplit(title, shards, None).name)
    names = labels.names if labels else None

    def split(name: str, tables: Sequence[Shard], row_N: Any, first: int = 0) -> TableSplit:
        return TableSplit(f"{title} ({name})", tables, classes, names, row_N, first)

    if test:
        return TableLayout(split("train", train, None), split("test", test, None, num_train))
    key_N = np.concatenate([row_keys(shard.name, len(shard)) for shard in train])
    test_N = held_out_by_key(key_N, fraction_of(test_fraction, num_train, labels is not None))
    rows = [np.flatnonzero(chosen_N).astype(np.uint32) for chosen_N in (~test_N, test_N)]
    return TableLayout(split("train", train, rows[0]), split("test", train, rows[1]))
