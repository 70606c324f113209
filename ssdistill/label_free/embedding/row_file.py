"""A file of numeric rows behind a header, to which rows are appended.

The header has the same length whatever number of rows it announces, so that it can be written
again once that number is known. Rows are written, not mapped: a full disk is then an error and
not the end of the process.
"""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ssdistill.errors import UserError

NPY_BYTES = 192
"""Length of an ``.npy`` header, a multiple of 64."""
TENSOR = "embeddings"
"""Name of the tensor in a ``.safetensors`` file, and of the array in an ``.npz`` file."""
SAFETENSORS_TYPES = {"float16": "F16", "float32": "F32"}
SAFETENSORS_STEP = 1024
Header = Callable[[tuple[int, ...], np.dtype], bytes]


def npy_header(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    """Return the header of an ``.npy`` file of version 1.0, padded to :data:`NPY_BYTES`."""
    described = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": tuple(map(int, shape)),
    }
    length = NPY_BYTES - 10
    text = repr(described).ljust(length - 1) + "\n"
    return b"\x93NUMPY\x01\x00" + length.to_bytes(2, "little") + text.encode("latin1")


def safetensors_header(facts: dict[str, str]) -> Header:
    """Return what makes the header of a ``.safetensors`` file with these metadata."""

    def header(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
        size = math.prod(shape) * dtype.itemsize
        tensor = {
            "dtype": SAFETENSORS_TYPES[dtype.name],
            "shape": list(shape),
            "data_offsets": [0, size],
        }
        text = json.dumps({"__metadata__": facts, TENSOR: tensor}).encode()
        # Spaces at the end are part of the format; the numbers of rows and bytes may be longer.
        padded = -(-(len(text) + 64) // SAFETENSORS_STEP) * SAFETENSORS_STEP
        return padded.to_bytes(8, "little") + text.ljust(padded)

    return header


class RowFile:
    """Rows that are appended to a file, or read from it.

    Args:
        path: the file.
        shape: of one row.
        dtype: of its numbers.
        header: makes the header, of the same length for any number of rows.
        rows: rows that the file holds for certain; what follows is cut off.

    Raises:
        UserError: the file has fewer rows.
    """

    def __init__(
        self,
        path: Path,
        shape: tuple[int, ...],
        dtype: np.dtype,
        header: Header = npy_header,
        rows: int = 0,
    ):
        self.path, self.shape, self.dtype, self.rows = path, shape, dtype, rows
        self._make_header = header
        self._offset = len(header((0, *shape), dtype))
        self.row_bytes = math.prod(shape) * dtype.itemsize
        end = self._offset + rows * self.row_bytes
        self._file = open(path, "r+b" if path.exists() else "w+b")  # noqa: SIM115  # until close
        size = os.fstat(self._file.fileno()).st_size
        if rows and size < end:
            self._file.close()
            raise UserError(
                f"{path}: {size} bytes, but {end} were written; delete {path.parent} and run the "
                "same command again"
            )
        self._file.truncate(end)
        self._file.seek(end)

    def append(self, rows: np.ndarray) -> None:
        """Write rows behind the last one."""
        self._file.write(np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data)
        self.rows += len(rows)

    def sync(self) -> None:
        """Make sure that the rows are on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def finish(self) -> None:
        """Write the header, which makes the file a complete one."""
        self._file.seek(0)
        self._file.write(self._make_header((self.rows, *self.shape), self.dtype))
        self.sync()
        self._file.seek(0, os.SEEK_END)

    def close(self) -> None:
        """Close the file; may be called twice."""
        self._file.close()

    def map(self) -> np.ndarray:
        """Return the rows that have been synced, (N, …), read-only, mapped from the file."""
        shape = (self.rows, *self.shape)
        return np.memmap(self.path, self.dtype, mode="r", offset=self._offset, shape=shape)

    def reader(self) -> "Rows":
        """Return the rows that have been synced, to be read in their order."""
        return Rows(self.path, (self.rows, *self.shape), self.dtype, self._offset)


class Rows:
    """Rows of a file, read by slices: unlike pages of a map, they leave memory when they are used.

    Attributes:
        shape: (N, …).
        dtype: of the numbers.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype, offset: int):
        self.path, self.shape, self.dtype, self._offset = path, shape, dtype, offset

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, _ = rows.indices(len(self))
        numbers = math.prod(self.shape[1:])
        at = self._offset + start * numbers * self.dtype.itemsize
        count = max(0, stop - start) * numbers
        return np.fromfile(self.path, self.dtype, count, offset=at).reshape(-1, *self.shape[1:])
