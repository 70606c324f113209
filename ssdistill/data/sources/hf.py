"""Data sets of Hugging Face's ``datasets``."""

from functools import cached_property
from typing import Annotated

from pydantic import Field

from ssdistill.data.hf_shard import choose_splits, load_splits
from ssdistill.data.list_columns import Wanted, one_way_to_label
from ssdistill.data.table_layout import TableLayout, table_layout, use_columns
from ssdistill.data.table_source import TableSource
from ssdistill.errors import shown
from ssdistill.files import user_path


class HuggingFace(TableSource):
    """A data set of Hugging Face's ``datasets``, map-style, whose images stay encoded.

    It is loaded from a folder that ``save_to_disk`` wrote, from a folder or file of Parquet, or by
    name from the hub. The library copies Parquet into its cache once (``HF_HOME``);
    ``kind: parquet`` does not. No code of a data set is run, and a path in place of an image is
    not followed. Splits are found by their names; without one to test on, rows are held out by
    hashes of their numbers. Needs ``pip install 'ssdistill[hf]'``.

    Args:
        path: a folder or file, or a name on the hub such as ``cifar10`` or ``owner/name``.
        name: of the configuration on the hub, where there are several.
        revision: of the data set on the hub: a commit, tag or branch.
        train_split: name of the split to train on; by default the one called train.
        test_split: of the split to test on; by default the one called test, or validation.
        column: of the images; by default the one called ``image``, or the only one.
        label_column: of labels, numbers or names, or lists of them; by default ``label`` or
            ``class``; ``none`` for no labels.
        label_columns: of 0 and 1, one for each class: their names, or patterns such as ``has_*``.
        test_fraction: fraction held out where there is no split to test on; by default 0.2 with
            labels and 0.1 without. 0 trains on everything.
    """

    kind = "hf"
    test_key = "data.test_split"
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
        train, test, left_out = choose_splits(splits, self.train_split, self.test_split)
        shards = [train] if test is None else [train, test]
        labels = use_columns(
            shards, self.column, self.label_column, self._title, self.label_columns
        )
        layout = table_layout(self._title, [train], shards[1:], labels, self.test_fraction)
        if left_out:
            layout.warnings.append(
                f"{self._title}: split {', '.join(map(shown, left_out))} is ignored; set "
                "data.train_split and data.test_split to use it"
            )
        return layout

    @property
    def _title(self) -> str:
        return f"data.path={shown(self.path)}"

    @property
    def description(self) -> str:
        return f"Hugging Face {shown(self.path)}, {self._counts}"
