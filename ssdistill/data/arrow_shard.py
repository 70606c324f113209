"""Arrow files (IPC files and streams, Feather), memory-mapped."""

import struct
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ssdistill.data.parquet_rows import column_texts
from ssdistill.data.table_file import checked, encoded, file_state, report_damage
from ssdistill.data.table_split import Shard
from ssdistill.errors import UserError, shown

MAGIC = b"ARROW1\0\0"
"""Precedes the stream in a file that ends with a directory; only the stream is read."""


def arrow_library(purpose: str) -> Any:
    """Import ``pyarrow`` and its ``ipc``.

    Raises:
        UserError: pyarrow is not installed.
    """
    try:
        import pyarrow
        import pyarrow.ipc
    except ImportError as error:
        raise UserError(f"{purpose} requires pyarrow: pip install 'ssdistill[arrow]'") from error
    return pyarrow


class ArrowShard(Shard):
    """One Arrow file; images are not copied until they are read.

    Args:
        path: of the file.
        name: prefix of the names of its images.

    Raises:
        UserError: from the constructor, if the file is damaged or compressed.
    """

    def __init__(self, path: Path, name: str):
        self.path, self.name = path, name
        self._arrow = arrow_library(f"data.path={shown(path)}")
        self.state = file_state(path)
        with report_damage(path):
            self.schema = checked(self._arrow.ipc.open_stream(self._stream()).schema)
            self._check_uncompressed()
        self._columns: dict[str, list[Any]] = {}
        self._ends: list[int] = []

    def use(self, images: str) -> None:
        """Map the column of images, and check that no offset points outside the file."""
        self._images, total = images, 0
        for part in self._column(images):
            total += len(part)
            self._ends.append(total)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def read(self, row: int) -> bytes:
        at = bisect_right(self._ends, row)
        start = self._ends[at - 1] if at else 0
        return encoded(self._column(self._images)[at][row - start])

    def texts(self, column: str) -> Iterator[str]:
        for part in self._column(column):
            yield from column_texts(part, column, f"data.path={shown(self.path)}")

    def _column(self, name: str) -> list[Any]:
        """Return a column as one array per batch of the file."""
        if name not in self._columns:
            fields = [self.schema.get_field_index(name)]
            options = self._arrow.ipc.IpcReadOptions(included_fields=fields)
            with report_damage(self.path):
                batches = self._arrow.ipc.open_stream(self._stream(), options=options)
                parts = [batch.column(0) for batch in batches]
                for part in parts:
                    # This reads offsets and text, but not the bytes. pyarrow accesses all fields
                    # of a struct at once, so all are checked.
                    part.validate(full=True)
            self._columns[name] = parts
        return self._columns[name]

    def _stream(self) -> Any:
        source = self._arrow.memory_map(str(self.path))
        if source.read(len(MAGIC)) != MAGIC:
            source.seek(0)
        return source

    def _check_uncompressed(self) -> None:
        """Raise UserError if a batch is compressed, since it could expand to any size."""
        for message in self._arrow.ipc.MessageReader.open_stream(self._stream()):
            if _is_compressed(message.metadata.to_pybytes(), message.type):
                raise UserError(
                    f"data.path={shown(self.path)} is compressed, so it cannot be memory-mapped; "
                    "write it with compression=None, or as Parquet"
                )


def _is_compressed(metadata: bytes, kind: str) -> bool:
    """Whether a message is compressed, by its header (Arrow's Message.fbs, a FlatBuffer)."""
    if kind not in ("record batch", "dictionary batch"):
        return False
    (message,) = struct.unpack_from("<I", metadata)
    batch = _member(metadata, message, 2)
    if kind == "dictionary batch" and batch:
        batch = _member(metadata, batch, 1)
    return batch is None or _member(metadata, batch, 3) is not None


def _member(data: bytes, table: int, number: int) -> int | None:
    """Return the offset of a nested table; None if it is absent."""
    directory = table - struct.unpack_from("<i", data, table)[0]
    if directory < 0 or 4 + 2 * number >= struct.unpack_from("<H", data, directory)[0]:
        return None
    (offset,) = struct.unpack_from("<H", data, directory + 4 + 2 * number)
    at = table + offset
    return at + struct.unpack_from("<I", data, at)[0] if offset else None
