"""Images named by a list: plain text, CSV, TSV or Parquet."""

import logging
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from ssdistill.data.layout_source import LayoutSource
from ssdistill.data.list_columns import USUAL, Wanted, one_way_to_label
from ssdistill.data.list_file import ListFile
from ssdistill.data.list_layout import ListLayout, read_list
from ssdistill.errors import NO_FILE, UserError, shown
from ssdistill.files import user_path

log = logging.getLogger(__name__)


class FileList(LayoutSource):
    """Image files named by a list: ``.csv``, ``.tsv``, ``.parquet``, or one path per line.

    Columns are found by their usual names (``path``, ``file``, ``image``; ``label``, ``class``;
    ``split``; ``weight``; ``group``, ``patient``) and printed. A list without a header has a
    column of paths and optionally one of labels; a plain text file has a path and optionally a
    number in each line. Lines that begin with ``#`` are ignored. Labels are numbers or names; an
    image may have several, in a column of lists or between separators. Missing files are reported
    before anything starts. Images listed twice count twice, with a warning. Without a column of
    splits, test images are held out by a hash of their group or path, so that a group is never
    divided.

    Args:
        path: the list.
        root: folder that relative paths start from, by default the folder of the list. Absolute
            paths and ``..`` are allowed.
        path_column: name of the column of paths.
        label_column: of labels; ``none``, here and below, means no such column.
        split_column: of splits: train, test or val, or synonyms.
        weight_column: of weights, non-negative numbers: training draws an image of weight 2 twice
            as often as one of weight 1. An epoch draws as many images as there are, with
            replacement.
        group_column: of groups, such as patients, that are held out as a whole.
        label_columns: of 0 and 1, one for each class: their names, or patterns such as ``has_*``.
        label_separator: between several labels of one image, such as ``|``.
        encoding: of a text file, such as ``cp1252``; by default that of its byte order mark, or
            UTF-8.
        missing: ``skip`` skips missing files, with a warning; ``refuse`` makes them an error.
        test_fraction: fraction to hold out if the list has no test images; by default 0.2 with
            labels and 0.1 without. 0 trains on all images.
    """

    kind = "list"
    test_remedy = "add a column of splits"
    later = ("label_columns",)

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
        requested = {role: getattr(self, f"{role}_column") for role in USUAL}
        if self.label_columns is not None:
            requested["label"] = "none"
        file = ListFile(user_path(self.path), requested, self.encoding, self.label_columns)
        if file.columns.name:
            log.info("%s: %s", file.title, file.columns)
        return file

    @cached_property
    def _layout(self) -> ListLayout:
        file = self._file  # a list that is not there is told before its folder
        root = user_path(self.path).parent if self.root is None else user_path(self.root)
        if not root.is_dir():
            reason = "a file, not a folder" if root.exists() else NO_FILE
            raise UserError(f"data.root={shown(root)}: {reason}; check the path")
        skip = self.missing == "skip"
        return read_list(file, root, self.test_fraction, self.label_separator, skip)

    @property
    def _title(self) -> str:
        return f"data.path={shown(self.path)}"

    @property
    def description(self) -> str:
        columns = f" ({self._file.columns})" if self._file.columns.name else ""
        return f"list {shown(Path(self.path).name)}{columns}, {self._counts}"
