"""Data sets of Hugging Face's ``datasets``: from disk, from Parquet files, or by name."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ssdistill.data.arrow_shard import ArrowShard
from ssdistill.data.parquet_rows import column_texts
from ssdistill.data.split_names import split_of
from ssdistill.data.table_file import encoded
from ssdistill.data.table_split import Shard
from ssdistill.errors import UserError, one_line, shown

BATCH = 1024
DICT, STATE = "dataset_dict.json", "state.json"
"""Files of what ``save_to_disk`` wrote."""


def datasets_library() -> Any:
    """Import Hugging Face's ``datasets``.

    Raises:
        UserError: it is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise UserError("data.kind=hf requires datasets: pip install 'ssdistill[hf]'") from error
    return datasets


class HfShard(Shard):
    """One split of a data set; a row is an index, and images stay encoded.

    Args:
        data: a map-style ``datasets.Dataset``.
        name: of the split.
    """

    def __init__(self, data: Any, name: str):
        self.path = self.name = name
        self._data = data
        self.schema = data.features.arrow_schema
        self.state = "\0".join([data._fingerprint, *map(_file_state, data.cache_files)])

    def use(self, images: str) -> None:
        """Read images from this column, undecoded."""
        datasets = datasets_library()
        rows = self._data.select_columns([images]).with_format(None)
        if isinstance(rows.features[images], datasets.Image):
            rows = rows.cast_column(images, datasets.Image(decode=False))
        self._rows, self._images = rows.with_format("arrow"), images

    def __len__(self) -> int:
        return len(self._data)

    def read(self, row: int) -> bytes:
        return encoded(self._rows[row].column(0)[0])

    def texts(self, column: str) -> Iterator[str]:
        rows = self._data.select_columns([column]).with_format("arrow")
        for start in range(0, len(rows), BATCH):
            values = rows[start : start + BATCH].column(0)
            yield from column_texts(values, column, f"split {shown(self.name)}")


def _file_state(file: Mapping[str, str]) -> str:
    status = os.stat(file["filename"])
    return f"{Path(file['filename']).name} {status.st_size} {status.st_mtime_ns}"


def load_splits(
    path: Path, text: str, name: str | None, revision: str | None
) -> dict[str, HfShard]:
    """Load all splits of a data set.

    Args:
        path: a folder written by ``save_to_disk``, or with Parquet files, or one such file; where
            there is none, ``text`` is a name on the hub.
        text: the setting.
        name, revision: of a configuration, and of a version on the hub.

    Raises:
        UserError: it cannot be loaded.
    """
    datasets = datasets_library()
    try:
        if (path / DICT).is_file() or (path / STATE).is_file():
            check_saved(path)
            found = datasets.load_from_disk(str(path))
        elif path.is_file():
            found = datasets.load_dataset("parquet", data_files=str(path))
        else:
            found = datasets.load_dataset(
                str(path) if path.is_dir() else text, name, revision=revision
            )
    except UserError:
        raise
    except Exception as error:  # of the library, the hub, the network, pyarrow
        place = "" if path.exists() else "; it is no folder here, so it was looked for on the hub"
        raise UserError(
            f"data.path={shown(text)}: datasets cannot load it ({one_line(error)}){place}; check "
            "path, data.name and the connection"
        ) from error
    splits = found if isinstance(found, dict) else {str(found.split or "train"): found}
    return {str(key): HfShard(data, str(key)) for key, data in splits.items()}


def choose_splits(
    splits: Mapping[str, HfShard], train: str | None, test: str | None
) -> tuple[HfShard, HfShard | None, list[str]]:
    """Return the splits to train on and to test on, and the names of those left out.

    Raises:
        UserError: no such split, or none that could be it.
    """
    known = ", ".join(map(shown, splits))
    for key, wanted in (("train_split", train), ("test_split", test)):
        if wanted is not None and wanted not in splits:
            raise UserError(f"data.{key}={shown(wanted)}: no such split; there are {known}")
    meant = {split_of(name): name for name in reversed(list(splits))}
    if train is None:
        train = meant.get("train") or (next(iter(splits)) if len(splits) == 1 else None)
    if train is None:
        raise UserError(f"data.train_split: which of {known} is to train on? Set it to one")
    if test is None:
        test = next((meant[s] for s in ("test", "val") if s in meant and meant[s] != train), None)
    left_out = [name for name in splits if name not in (train, test)]
    return splits[train], splits[test] if test else None, left_out


def check_saved(folder: Path) -> None:
    """Check what ``save_to_disk`` wrote before the library opens it.

    Raises:
        UserError: files outside of the folder, damaged ones, and compressed ones.
    """
    import json

    parts = [folder]
    if (folder / DICT).is_file():
        parts = [folder / str(name) for name in json.loads((folder / DICT).read_text())["splits"]]
    for part in parts:
        files = json.loads((part / STATE).read_text())["_data_files"]
        for file in files:
            path = part / str(file["filename"])
            inside = os.path.realpath(path).startswith(os.path.realpath(folder) + os.sep)
            if not inside:
                raise UserError(
                    f"data.path={shown(folder)}: {shown(file['filename'])} is outside of the "
                    "folder; save the data set again"
                )
            ArrowShard(path, path.name)
