"""Read datasets of an HDF5 file safely: no other files, built-in filters only."""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from ssdistill.data.bad_image import BadImage
from ssdistill.data.decode import open_regular
from ssdistill.data.handles import PerProcess, require
from ssdistill.errors import UserError, one_line, shown, system_reason
from ssdistill.machine import memory_bytes

FILTERS = {1: "deflate", 2: "shuffle", 3: "fletcher32", 4: "szip", 5: "nbit", 6: "scaleoffset"} | {
    32000: "lzf"
}
"""Filters built into HDF5 and h5py; others would load libraries from a plugin folder."""
MOST_OBJECTS = 10_000
"""Maximum number of objects of a file to visit."""
LARGEST_ENCODED = 1 << 30
"""Maximum size of an encoded image in bytes."""


class Hdf5File:
    """An HDF5 file, read by row.

    Links to other files, data stored in other files and virtual datasets are not followed.

    Args:
        name: of the file in messages.

    Raises:
        UserError: from any method, if the file is missing or damaged, or h5py not installed.
    """

    def __init__(self, path: Path, name: str):
        self.path, self.where = path, name
        self._file = PerProcess(partial(_opened, path, name))

    def keys(self) -> list[str]:
        """Return the names of all datasets that are not scalars."""
        try:
            return [name for name, dataset in _datasets(self._file(), "") if dataset.shape]
        except (OSError, RuntimeError, KeyError, ValueError) as error:
            raise UserError(f"{self.where}: damaged ({one_line(error)}); copy it again") from error

    def dataset(self, key: str) -> Any:
        """Return a dataset whose rows can be read safely.

        Raises:
            UserError: data in other files, an unknown filter, or rows that do not fit into memory.
        """
        require("h5py", "hdf5", "data.kind=hdf5")
        import h5py

        try:
            dataset = self._file()
            for part in key.split("/"):
                if not isinstance(dataset.get(part, getlink=True), h5py.HardLink):
                    raise self._error(key, "is a link; copy the data into the file")
                dataset = dataset[part]
            problem = _problem(dataset)
        except (OSError, RuntimeError, KeyError, ValueError, AttributeError) as error:
            raise self._error(key, f"cannot be read ({one_line(error)}); copy it again") from error
        if problem:
            raise self._error(key, problem)
        return dataset

    def read(self, key: str, rows: slice | None = None) -> np.ndarray:
        """Return rows of a numeric dataset, by default all."""
        dataset = self.dataset(key)
        if dataset.dtype.hasobject or dataset.dtype.kind not in "buif":
            raise self._error(key, f"is {dataset.dtype}; store numbers")
        if rows is None and dataset.size * dataset.dtype.itemsize > memory_bytes() // 2:
            raise self._error(key, "does not fit into memory; store fewer numbers")
        try:
            return np.asarray(dataset[() if rows is None else rows])
        except (OSError, RuntimeError, ValueError) as error:
            raise self._error(key, f"cannot be read ({one_line(error)}); copy it again") from error

    def identity(self, *keys: str) -> str:
        """Return the size and time of the file, and the given keys, as text."""
        status = os.stat(self.path)
        return f"{status.st_size} {status.st_mtime_ns} {' '.join(keys)}"

    def _error(self, key: str, problem: str) -> UserError:
        return UserError(f"{self.where}: '{shown(key)}' {problem}")


class EncodedRows:
    """A dataset of encoded images: bytes of variable length, or zero-padded to a fixed length."""

    def __init__(self, file: Hdf5File, key: str):
        self._file, self._key = file, key
        self._rows = PerProcess(partial(file.dataset, key))
        self.identity = file.identity(key)

    def __len__(self) -> int:
        return len(self._rows())

    def name(self, row: int) -> str:
        return f"{self._key}[{row}]"

    def read(self, row: int) -> bytes:
        try:
            value = self._rows()[row]
        except (RuntimeError, ValueError, KeyError) as error:
            raise BadImage(f"cannot be read ({type(error).__name__})") from error
        return value.tobytes().rstrip(b"\0") if isinstance(value, np.void) else bytes(value)


class OffsetRows:
    """Encoded images in two datasets: the bytes of all images, and the offset of each.

    Args:
        key: of the bytes.
        offset_key: of the offsets, (N,), or (N + 1,) if the last is the number of bytes.

    Raises:
        UserError: from the constructor, if offsets are not ascending whole numbers.
    """

    def __init__(self, file: Hdf5File, key: str, offset_key: str):
        self._file, self._key = file, key
        self._bytes = PerProcess(partial(file.dataset, key))
        self.identity = file.identity(key, offset_key)
        total, offset_N = len(self._bytes()), file.read(offset_key)
        if offset_N.ndim != 1 or offset_N.dtype.kind not in "iu" or not len(offset_N):
            raise UserError(
                f"{file.where}: '{offset_key}' must be a one-dimensional array of whole numbers; "
                f"it is {offset_N.dtype} of shape {' x '.join(map(str, offset_N.shape))}"
            )
        offset_N = offset_N.astype(np.int64)
        if offset_N[-1] != total:
            offset_N = np.append(offset_N, total)
        if offset_N[0] < 0 or (np.diff(offset_N) < 0).any():
            raise UserError(
                f"{file.where}: '{offset_key}' must ascend from 0 to {total}, the number of bytes "
                f"of '{key}'; write it again"
            )
        self._offset_N = offset_N

    def __len__(self) -> int:
        return len(self._offset_N) - 1

    def name(self, row: int) -> str:
        return f"{self._key}[{row}]"

    def read(self, row: int) -> bytes:
        start, stop = self._offset_N[row : row + 2].tolist()
        if stop - start > LARGEST_ENCODED:
            raise BadImage(f"{stop - start} bytes are too many for an image; check the offsets")
        try:
            return self._bytes()[start:stop].tobytes()
        except (RuntimeError, ValueError) as error:
            raise BadImage(f"cannot be read ({type(error).__name__})") from error


def is_encoded(dataset: Any) -> bool:
    """Whether each row of a dataset is an encoded image."""
    import h5py

    base = h5py.check_vlen_dtype(dataset.dtype)
    return len(dataset.shape) == 1 and (base == np.uint8 or dataset.dtype.kind in "SV")


def _opened(path: Path, name: str) -> Any:
    require("h5py", "hdf5", "data.kind=hdf5")
    import h5py

    try:
        open_regular(path).close()
        return h5py.File(path, "r", locking=False)
    except BadImage as error:
        raise UserError(f"{name}: {error.reason}; pass an HDF5 file") from error
    except OSError as error:
        raise UserError(f"{name}: {system_reason(error)}; pass an HDF5 file") from error


def _datasets(group: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield names and datasets below a group, following hard links only."""
    import h5py

    waiting, seen = [(prefix, group)], {group.id.__hash__()}
    num_visited = 0
    while waiting:
        prefix, group = waiting.pop(0)
        for name in group:
            num_visited += 1
            if num_visited > MOST_OBJECTS:
                return
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                continue
            child = group[name]
            if isinstance(child, h5py.Dataset):
                yield prefix + name, child
            elif isinstance(child, h5py.Group) and child.id.__hash__() not in seen:
                seen.add(child.id.__hash__())
                waiting.append((f"{prefix}{name}/", child))


def _problem(dataset: Any) -> str | None:
    """Return why a dataset cannot be read safely; None if it can."""
    import h5py

    if not isinstance(dataset, h5py.Dataset) or not dataset.shape:
        return "is not an array; set the name of a dataset"
    if dataset.external or dataset.is_virtual:
        return "stores its data in other files; copy the data into the file"
    plist = cast("Any", dataset.id).get_create_plist()
    filters = [plist.get_filter(i) for i in range(plist.get_nfilters())]
    for number, _, _, name in filters:
        if number not in FILTERS:
            label = shown(name.decode("utf-8", "replace")) or number
            return f"is compressed with a filter that is not built in ({label}); use gzip or lzf"
    limit = memory_bytes() // 4
    row = dataset.dtype.itemsize * int(np.prod(dataset.shape[1:], dtype=object))
    chunk = dataset.dtype.itemsize * int(np.prod(dataset.chunks or (0,), dtype=object))
    if max(row, chunk) > limit:
        return f"requires {max(row, chunk) / 1e9:.1f} GB to read a row; use smaller chunks"
    base = h5py.check_vlen_dtype(dataset.dtype)
    if dataset.dtype.hasobject and base != np.uint8:
        return (
            "contains text or references, or rows of different length; store labels as numbers, "
            "(N,) or (N, K), and encoded images as bytes of variable length, with "
            "h5py.vlen_dtype('uint8')"
        )
    return None
