"""Encoded images in Arrow and Parquet files."""

import logging
from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from ssdistill.data.arrow_shard import ArrowShard
from ssdistill.data.layout_source import LayoutSource
from ssdistill.data.list_columns import Wanted, one_way_to_label
from ssdistill.data.parquet_shard import GroupCache, ParquetShard
from ssdistill.data.table_layout import (
    TableLayout,
    find_files,
    sort_files,
    table_layout,
    use_columns,
)
from ssdistill.errors import shown

log = logging.getLogger(__name__)
Paths = str | Annotated[list[str], Field(min_length=1)]


class _Tables(LayoutSource):
    """Base class of sources whose files have an encoded image in each row."""

    test_remedy = "set data.test_path"
    later = ("label_columns",)
    suffixes: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        *,
        path: Paths,
        test_path: Paths | None = None,
        column: str | None = None,
        label_column: str | None = None,
        test_fraction: Annotated[float, Field(ge=0, lt=1)] | None = None,
        label_columns: Wanted = None,
    ):
        self.label_columns = one_way_to_label(label_column, label_columns)
        self.path, self.test_path = path, test_path
        self.column, self.label_column, self.test_fraction = column, label_column, test_fraction

    @abstractmethod
    def _open(self, path: Path, name: str) -> Any:
        """Open one file."""

    @property
    def _title(self) -> str:
        return f"data.path={', '.join(map(shown, _listed(self.path)))}"

    @cached_property
    def _layout(self) -> TableLayout:
        files, ignored = find_files(_listed(self.path), self.suffixes), []
        if self.test_path is None:
            files, test, ignored = sort_files(files)
        else:
            test = find_files(_listed(self.test_path), self.suffixes)
        train, test = ([self._open(path, name) for name, path in part] for part in (files, test))
        labels = use_columns(
            [*train, *test], self.column, self.label_column, self._title, self.label_columns
        )
        layout = table_layout(self._title, train, test, labels, self.test_fraction)
        if ignored:
            layout.warnings.append(
                f"{self._title}: ignoring {len(ignored)} files (first: {shown(ignored[0])}), whose "
                "names are neither train nor test; list files in data.path and data.test_path"
            )
        return layout

    @property
    def description(self) -> str:
        names = ", ".join(shown(Path(path).name) for path in _listed(self.path))
        return f"{self.kind} {names}, {self._counts}"


class Arrow(_Tables):
    """Arrow files (IPC, Feather, as Hugging Face saves them) with an encoded image in each row.

    Files are memory-mapped for random access, so they must not be compressed. A column of images
    holds bytes of image files, or structs with a field ``bytes``; paths instead of bytes are not
    followed. Names of files or folders determine the splits
    (``train-00000-of-00004.arrow``, ``validation/…``); otherwise rows are held out by hashes of
    their numbers. Class names are taken from Hugging Face's description of the columns. Requires
    ``pip install 'ssdistill[arrow]'``.

    Args:
        path: a file, a folder, a pattern such as ``shards/train-*.arrow``, or a list of them.
        test_path: the same for test images, if names do not tell them apart.
        column: of the images, by default ``image`` or the only one of bytes.
        label_column: of the labels, numbers or names or lists of them, by default ``label`` or
            ``class``; ``none`` ignores labels.
        label_columns: of 0 and 1, one for each class: their names, or patterns such as ``has_*``.
        test_fraction: fraction to hold out without test images; by default 0.2 with labels and
            0.1 without. 0 trains on all images.
    """

    kind = "arrow"
    suffixes = (".arrow", ".feather", ".ipc")

    def _open(self, path: Path, name: str) -> ArrowShard:
        return ArrowShard(path, name)


class Parquet(_Tables):
    """Parquet files with an encoded image in each row, as Hugging Face's hub has them.

    Parquet is read by row group; recent ones are cached (512 MB). Images stored as squares
    (``data.pixels=stored``) are read once, in order. For originals, which are read in shuffled
    order, small row groups (100 images) or ``kind: arrow`` are much faster. Otherwise like
    ``kind: arrow``. Requires ``pip install 'ssdistill[arrow]'``.

    Args:
        path: a file, a folder, a pattern such as ``data/train-*.parquet``, or a list of them.
        test_path: the same for test images, if names do not tell them apart.
        column: of the images, by default ``image`` or the only one of bytes.
        label_column: of the labels, numbers or names or lists of them, by default ``label`` or
            ``class``; ``none`` ignores labels.
        label_columns: of 0 and 1, one for each class: their names, or patterns such as ``has_*``.
        test_fraction: fraction to hold out without test images; by default 0.2 with labels and
            0.1 without. 0 trains on all images.
    """

    kind = "parquet"
    suffixes = (".parquet", ".pq")

    @cached_property
    def _cache(self) -> GroupCache:
        return GroupCache()

    def _open(self, path: Path, name: str) -> ParquetShard:
        return ParquetShard(path, name, self._cache)


def _listed(paths: str | Sequence[str]) -> list[str]:
    return [paths] if isinstance(paths, str) else list(paths)
