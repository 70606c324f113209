"""Data sets of Hugging Face's ``datasets``."""

from functools import cached_property
from typing import Annotated

from pydantic import Field

from ssdistill.data.hf_shard import choose_splits, load_splits
from ssdistill.data.layout_source import LayoutSource
from ssdistill.data.list_columns import Wanted, one_way_to_label
from ssdistill.data.table_layout import TableLayout, table_layout, use_columns
from ssdistill.errors import shown
from ssdistill.files import user_path


class HuggingFace(LayoutSource):
    """A map-style data set of Hugging Face's ``datasets``, whose images stay encoded.

    It is loaded from a folder written by ``save_to_disk``, from Parquet files, or by name from the
    hub. The library copies Parquet files into its cache once (``HF_HOME``); ``kind: parquet`` does
    not. Code of data sets is never run, and paths instead of images are not followed. Splits are
    found by name; without a test split, rows are held out by hashes of their numbers. Requires
    ``pip install 'ssdistill[hf]'``.

    Args:
        path: a folder or file, or a name on the hub such as ``cifar10`` or ``owner/name``.
        name: of the configuration on the hub, if there are several.
        revision: of the data set on the hub: a commit, tag or branch.
        train_split: name of the training split, by default train.
        test_split: name of the test split, by default test or validation.
        column: of the images, by default ``image`` or the only one of bytes.
        label_column: of the labels, numbers or names or lists of them, by default ``label`` or
            ``class``; ``none`` ignores labels.
        label_columns: of 0 and 1, one for each class: their names, or patterns such as ``has_*``.
        test_fraction: fraction to hold out without a test split; by default 0.2 with labels and
            0.1 without. 0 trains on all images.
    """

    kind = "hf"
    test_remedy = "set data.test_split"
    later = ("label_columns",)

    def __init__(
        self,
        *,
        path: str,
        name: str | None = None,
        revision: str | None = None,
        train_split: str | None = None,
        test_split: str | None = None,
        column: str | None = None,
        label_column: str | None = None,
        test_fraction: Annotated[float, Field(ge=0, lt=1)] | None = None,
        label_columns: Wanted = None,
    ):
        self.label_columns = one_way_to_label(label_column, label_columns)
        self.path, self.name, self.revision = path, name, revision
        self.train_split, self.test_split = train_split, test_split
        self.column, self.label_column, self.test_fraction = column, label_column, test_fraction

    @cached_property
    def _layout(self) -> TableLayout:
        splits = load_splits(user_path(self.path), self.path, self.name, self.revision)
        train, test, ignored = choose_splits(splits, self.train_split, self.test_split)
        shards = [train] if test is None else [train, test]
        labels = use_columns(
            shards, self.column, self.label_column, self._title, self.label_columns
        )
        layout = table_layout(self._title, [train], shards[1:], labels, self.test_fraction)
        if ignored:
            layout.warnings.append(
                f"{self._title}: ignoring split {', '.join(map(shown, ignored))}; set "
                "data.train_split and data.test_split to use it"
            )
        return layout

    @property
    def _title(self) -> str:
        return f"data.path={shown(self.path)}"

    @property
    def description(self) -> str:
        return f"Hugging Face {shown(self.path)}, {self._counts}"
