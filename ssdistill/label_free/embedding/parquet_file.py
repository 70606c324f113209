"""Write embeddings as a Parquet table, a group of rows at a time."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ssdistill.label_free.embedding.parts import Part, all_names
from ssdistill.label_free.embedding.row_file import Rows

GROUP_BYTES = 32 << 20
"""Bytes of embeddings in a group of rows."""


def write_parquet(path: Path, rows: Rows, parts: Sequence[Part], facts: dict[str, str]) -> None:
    """Write the columns ``name``, ``split`` and ``embedding``, a list of fixed length.

    Patches are lists of lists. Facts are metadata of the schema.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind = pa.from_numpy_dtype(rows.dtype)
    for size in reversed(rows.shape[1:]):
        kind = pa.list_(kind, size)
    schema = pa.schema(
        [("name", pa.string()), ("split", pa.string()), ("embedding", kind)], metadata=facts
    )
    most = max(1, GROUP_BYTES // max(1, rows[:1].nbytes))
    at = 0
    columns_of_few_values: Any = ["split"]  # pyarrow says bool, and takes a list
    with pq.ParquetWriter(path, schema, use_dictionary=columns_of_few_values) as writer:
        for split, all_of_them in all_names(parts):
            for start in range(0, len(all_of_them), most):
                names = all_of_them[start : start + most]
                vectors = _lists(rows[at : at + len(names)], pa)
                columns = [pa.array(names, pa.string()), pa.array([split] * len(names)), vectors]
                writer.write_table(pa.Table.from_arrays(columns, schema=schema))
                at += len(names)


def _lists(rows: np.ndarray, pa: Any) -> Any:
    array = pa.array(rows.reshape(-1))
    for size in reversed(rows.shape[1:]):
        array = pa.FixedSizeListArray.from_arrays(array, size)
    return array
