"""Load data sets with Hugging Face's ``datasets``: from disk, from Parquet files, or by name."""

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
"""Files written by ``save_to_disk``."""


def datasets_library() -> Any:
    """Import Hugging Face's ``datasets``.

    Raises:
        UserError: datasets is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise UserError("data.kind=hf requires datasets: pip install 'ssdistill[hf]'") from error
    return datasets


class HfShard(Shard):
    """One split of a data set, whose images stay encoded.

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
        path: a folder written by ``save_to_disk``, a folder of Parquet files, or a Parquet file.
        text: the setting; a name on the hub if ``path`` does not exist.
        name, revision: a configuration, and a version on the hub.

    Raises:
        UserError: the data set cannot be loaded.
    """
    datasets = datasets_library()
    try:
        if (path / DICT).is_file() or (path / STATE).is_file():
            check_saved(path)
            loaded = datasets.load_from_disk(str(path))
        elif path.is_file():
            loaded = datasets.load_dataset("parquet", data_files=str(path))
        else:
            loaded = datasets.load_dataset(
                str(path) if path.is_dir() else text, name, revision=revision
            )
    except UserError:
        raise
    except Exception as error:  # from the library, the hub, the network or pyarrow
        hub = "" if path.exists() else "; not a local folder, so it was looked up on the hub"
        raise UserError(
            f"data.path={shown(text)}: datasets cannot load it ({one_line(error)}){hub}; check the "
            "path, data.name and the connection"
        ) from error
    splits = loaded if isinstance(loaded, dict) else {str(loaded.split or "train"): loaded}
    return {str(key): HfShard(data, str(key)) for key, data in splits.items()}


def choose_splits(
    splits: Mapping[str, HfShard], train: str | None, test: str | None
) -> tuple[HfShard, HfShard | None, list[str]]:
    """Return the training split, the test split, and the names of ignored ones.

    Raises:
        UserError: a split does not exist, or none is recognized as the training split.
    """
    names = ", ".join(map(shown, splits))
    for key, name in (("train_split", train), ("test_split", test)):
        if name is not None and name not in splits:
            raise UserError(f"data.{key}={shown(name)}: no such split; set one of {names}")
    name_of = {split_of(name): name for name in reversed(list(splits))}
    if train is None:
        train = name_of.get("train") or (next(iter(splits)) if len(splits) == 1 else None)
    if train is None:
        raise UserError(f"data.train_split: required; set it to one of the splits {names}")
    if test is None:
        tests = (name_of[s] for s in ("test", "val") if s in name_of)
        test = next((name for name in tests if name != train), None)
    ignored = [name for name in splits if name not in (train, test)]
    return splits[train], splits[test] if test else None, ignored


def check_saved(folder: Path) -> None:
    """Check files written by ``save_to_disk`` before the library opens them.

    Raises:
        UserError: a file is outside the folder, damaged or compressed.
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
                    f"data.path={shown(folder)}: {shown(file['filename'])} is outside the folder; "
                    "save the data set again"
                )
            ArrowShard(path, path.name)
