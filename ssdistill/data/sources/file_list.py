"""Images that a list names: text, CSV, TSV or Parquet."""

import logging
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from ssdistill.data.list_columns import USUAL, Wanted, one_way_to_label
from ssdistill.data.list_file import ListFile
from ssdistill.data.list_layout import ListLayout, read_list
from ssdistill.data.splits import RawSplit, Source
from ssdistill.errors import UserError, shown
from ssdistill.files import user_path

log = logging.getLogger(__name__)


class FileList(Source):
    """Image files named by a list: ``.csv``, ``.tsv``, ``.parquet``, or text with a path a line.

    Columns are found by their usual names (``path``, ``file``, ``image``; ``label``, ``class``;
    ``split``; ``weight``; ``group``, ``patient``), and which were found is printed. A list without
    names of columns has a path, or a path and a label; a text has a path in each line, or a path
    and a number. Lines that begin with ``#`` are ignored. Labels are numbers or names; an image may
    have several, in a column of lists or between separators. A file that is not there is named
    before anything starts. Images that are named twice count twice, with a warning. Without a
    column of splits, images are held out for ``test`` by a hash of their group or path, so that
    all of a group are on one side.

    Args:
        path: the list.
        root: folder that relative paths start from; the folder of the list by default. Absolute
            paths and ``..`` are allowed.
        path_column: name of the column of paths.
        label_column: of labels; ``none``, here and below, for no such column.
        split_column: of splits: train, test or val, or other words for them.
        weight_column: of weights, numbers from 0: training draws an image of weight 2 twice as
            often as one of weight 1. An epoch draws as many as there are images, with replacement.
        group_column: of groups, such as patients, that are held out as a whole.
        label_columns: of 0 and 1, one for each class: their names, or patterns such as ``has_*``.
        label_separator: between several labels of one image, such as ``|``.
        encoding: of a text, such as ``cp1252``; UTF-8 by default, or what the file begins with.
        missing: ``skip`` skips files that are not there, with a warning.
        test_fraction: fraction held out where the list has no test images; by default 0.2 with
            labels and 0.1 without. 0 trains on everything.
    """

    kind = "list"
    later = ("label_columns",)
    default_image_size = 64

    def __init__(
        self,
        *,
        path: str,
        root: str | None = None,
        path_column: str | None = None,
        label_column: str | None = None,
        split_column: str | None = None,
        weight_column: str | None = None,
        group_column: str | None = None,
        label_separator: Annotated[str, Field(min_length=1)] | None = None,
        encoding: str | None = None,
        missing: Literal["refuse", "skip"] = "refuse",
        test_fraction: Annotated[float, Field(ge=0, lt=1)] | None = None,
        label_columns: Wanted = None,
    ):
        self.label_columns = one_way_to_label(label_column, label_columns)
        self.path, self.root = path, root
        self.path_column, self.label_column = path_column, label_column
        self.split_column, self.weight_column = split_column, weight_column
        self.group_column, self.label_separator = group_column, label_separator
        self.encoding, self.missing, self.test_fraction = encoding, missing, test_fraction

    @cached_property
    def _file(self) -> ListFile:
        wanted = {role: getattr(self, f"{role}_column") for role in USUAL}
        if self.label_columns is not None:
            wanted["label"] = "none"
        file = ListFile(user_path(self.path), wanted, self.encoding, self.label_columns)
        if file.columns.name:
            log.info("%s: %s", file.title, file.columns)
        return file

    @cached_property
    def _layout(self) -> ListLayout:
        root = user_path(self.path).parent if self.root is None else user_path(self.root)
        if not root.is_dir():
            raise UserError(f"data.root={shown(root)}: no such folder")
        skip = self.missing == "skip"
        return read_list(self._file, root, self.test_fraction, self.label_separator, skip)

    @property
    def has_labels(self) -> bool:
        return self.has_test and self._file.labeled

    @property
    def has_test(self) -> bool:
        return len(self._layout.test) > 0

    def warnings(self, labels: bool) -> tuple[str, ...]:
        return tuple(self._layout.warnings)

    @property
    def description(self) -> str:
        columns = f" ({self._file.columns})" if self._file.columns.name else ""
        return (
            f"list {shown(Path(self.path).name)}{columns}, "
            f"{'labeled' if self.has_labels else 'unlabeled'}, {len(self._layout.train)} train "
            f"and {len(self._layout.test)} test images"
        )

    def _split(self, name: str) -> RawSplit:
        split = getattr(self._layout, name)
        if not len(split):
            raise UserError(
                f"data.path={shown(self.path)} has no {name} images; raise data.test_fraction "
                f"(now {self.test_fraction}), or add a column of splits"
            )
        return split
