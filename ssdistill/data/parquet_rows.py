"""Read text columns of Parquet tables, in small batches of rows."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ssdistill.data.decode import open_regular
from ssdistill.data.several_labels import joined
from ssdistill.errors import UserError, one_line, shown

BATCH = 1024
LONGEST = 1 << 16
"""Maximum length of a value in characters; paths, classes and groups are shorter."""


def parquet_library(purpose: str) -> Any:
    """Import ``pyarrow.parquet``.

    Raises:
        UserError: pyarrow is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(f"{purpose} requires pyarrow: pip install 'ssdistill[arrow]'") from error
    return pyarrow.parquet


def parquet_columns(path: Path) -> list[str]:
    """Return the names of a table's columns.

    Raises:
        UserError: the file is damaged.
        OSError: it cannot be opened.
    """
    with _opened(path) as table:
        return list(table.schema_arrow.names)


def parquet_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yield columns of every row as text: null as ``""``, lists as :func:`joined`.

    Raises:
        UserError: the file is damaged, or values are neither text nor numbers.
    """
    names, title = list(dict.fromkeys(columns)), f"data.path={shown(path)}"
    with _opened(path) as table:
        types = {field.name: str(field.type) for field in table.schema_arrow}
    texts = [name for name in names if types[name] in ("string", "large_string")]
    with _opened(path, texts) as table:
        for batch in table.iter_batches(BATCH, columns=names):
            values = [
                column_texts(batch.column(batch.schema.get_field_index(name)), name, title)
                for name in columns
            ]
            yield from zip(*values, strict=True)


def column_texts(column: Any, name: str, title: str) -> Iterator[str]:
    """Yield the values of an Arrow array as text; see :func:`parquet_rows`.

    Raises:
        UserError: values are neither text nor numbers, or too long.
    """
    for value in column:
        value = value.as_py()
        parts = value if isinstance(value, list) else [value]
        if any(isinstance(part, (dict, list, tuple, bytes)) for part in parts):
            raise UserError(
                f"{title}: column '{shown(name)}' is {column.type}, not text or numbers; set "
                "another column"
            )
        if isinstance(value, list):
            text = joined(value)
        else:
            text = "" if value is None else str(value).strip(" ")
        if len(text) > LONGEST:
            raise UserError(
                f"{title}: column '{shown(name)}' has a value of {len(text)} characters, more "
                f"than {LONGEST}; set another column"
            )
        yield text


@contextmanager
def _opened(path: Path, columns: Sequence[str] = ()) -> Iterator[Any]:
    parquet = parquet_library(f"data.path={shown(path)}")
    with open_regular(path) as file:
        try:
            # Repeated long texts are kept in memory once.
            with parquet.ParquetFile(file, read_dictionary=list(columns)) as table:
                yield table
        except UserError:
            raise
        except Exception as error:  # pyarrow raises its own errors, ValueError and OSError
            raise UserError(
                f"data.path={shown(path)}: cannot read this Parquet file ({one_line(error)}); "
                "write it again"
            ) from error
