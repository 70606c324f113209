"""Datasets of an HDF5 file that are safe to read: in this file alone, by known filters."""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from ssdistill.data.bad_image import BadImage
from ssdistill.data.decode import open_regular
from ssdistill.data.handles import PerProcess, require
from ssdistill.errors import UserError, one_line, shown
from ssdistill.machine import memory_bytes

FILTERS = {1: "deflate", 2: "shuffle", 3: "fletcher32", 4: "szip", 5: "nbit", 6: "scaleoffset"} | {
    32000: "lzf"
}
"""Filters that HDF5 and h5py bring; others are libraries loaded from a folder."""
MOST_OBJECTS = 10_000
"""Objects of a file that are looked at."""
LARGEST_ENCODED = 1 << 30
"""Bytes of an encoded image."""


class Hdf5File:
    """An HDF5 file, read by row.

    Links to other files, data stored in other files and virtual datasets are not followed.

    Args:
        name: of the file in messages.

    Raises:
        UserError: from any method: missing, damaged, or h5py is not installed.
    """

    def __init__(self, path: Path, name: str):
        self.path, self.where = path, name
        self._file = PerProcess(partial(_opened, path, name))

    def keys(self) -> list[str]:
        """Return the names of all datasets with an axis."""
        try:
            return [name for name, found in _datasets(self._file(), "") if found.shape]
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
            place = self._file()
            for part in key.split("/"):
                if not isinstance(place.get(part, getlink=True), h5py.HardLink):
                    raise self._refused(key, "is behind a link; copy the data into the file")
                place = place[part]
            problem = _problem(place)
        except (OSError, RuntimeError, KeyError, ValueError, AttributeError) as error:
            raise self._refused(
                key, f"cannot be read ({one_line(error)}); copy it again"
            ) from error
        if problem:
            raise self._refused(key, problem)
        return place

    def read(self, key: str, rows: slice | None = None) -> np.ndarray:
        """Return rows of a dataset of numbers, all by default."""
        found = self.dataset(key)
        if found.dtype.hasobject or found.dtype.kind not in "buif":
            raise self._refused(key, f"is {found.dtype}; store numbers")
        if rows is None and found.size * found.dtype.itemsize > memory_bytes() // 2:
            raise self._refused(key, "does not fit into memory; store fewer numbers")
        try:
            return np.asarray(found[() if rows is None else rows])
        except (OSError, RuntimeError, ValueError) as error:
            raise self._refused(
                key, f"cannot be read ({one_line(error)}); copy it again"
            ) from error

    def identity(self, *keys: str) -> str:
        """Return size and time of the file, and what is read of it."""
        status = os.stat(self.path)
        return f"{status.st_size} {status.st_mtime_ns} {' '.join(keys)}"

    def _refused(self, key: str, why: str) -> UserError:
        return UserError(f"{self.where}: '{shown(key)}' {why}")


class EncodedRows:
    """One dataset of encoded images: bytes of variable length, or of one length padded by zeros."""

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
    """Two datasets: the bytes of all images, and where each begins.

    Args:
        offsets: (N + 1,), the last is the number of bytes; or (N,), the last image ends with them.
    """

    def __init__(self, file: Hdf5File, key: str, offset_key: str):
        self._file, self._key = file, key
        self._bytes = PerProcess(partial(file.dataset, key))
        self.identity = file.identity(key, offset_key)
        total, offset_N = len(self._bytes()), file.read(offset_key)
        if offset_N.ndim != 1 or offset_N.dtype.kind not in "iu" or not len(offset_N):
            raise UserError(
                f"{file.where}: '{offset_key}' must be whole numbers, one for each image; it is "
                f"{offset_N.dtype} of {' x '.join(map(str, offset_N.shape))}"
            )
        offset_N = offset_N.astype(np.int64)
        if offset_N[-1] != total:
            offset_N = np.append(offset_N, total)
        if offset_N[0] < 0 or (np.diff(offset_N) < 0).any():
            raise UserError(
                f"{file.where}: '{offset_key}' must rise from 0 to the {total} bytes of '{key}'; "
                "write them again"
            )
        self._offset_N = offset_N

    def __len__(self) -> int:
        return len(self._offset_N) - 1

    def name(self, row: int) -> str:
        return f"{self._key}[{row}]"

    def read(self, row: int) -> bytes:
        start, stop = self._offset_N[row : row + 2].tolist()
        if stop - start > LARGEST_ENCODED:
            raise BadImage(f"{stop - start} bytes are no image")
        try:
            return self._bytes()[start:stop].tobytes()
        except (RuntimeError, ValueError) as error:
            raise BadImage(f"cannot be read ({type(error).__name__})") from error


def is_encoded(found: Any) -> bool:
    """Whether each row of a dataset is one encoded image."""
    import h5py

    base = h5py.check_vlen_dtype(found.dtype)
    return len(found.shape) == 1 and (base == np.uint8 or found.dtype.kind in "SV")


def _opened(path: Path, name: str) -> Any:
    require("h5py", "hdf5", "data.kind=hdf5")
    import h5py

    try:
        open_regular(path).close()
        return h5py.File(path, "r", locking=False)
    except BadImage as error:
        raise UserError(f"{name}: {error.reason}; set it to an HDF5 file") from error
    except OSError as error:
        reason = error.strerror or one_line(error)
        raise UserError(f"{name}: {reason}; set it to an HDF5 file") from error


def _datasets(group: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield names and datasets below a group, through links within the file to objects alone."""
    import h5py

    waiting, seen = [(prefix, group)], {group.id.__hash__()}
    looked_at = 0
    while waiting:
        prefix, group = waiting.pop(0)
        for name in group:
            looked_at += 1
            if looked_at > MOST_OBJECTS:
                return
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                continue
            found = group[name]
            if isinstance(found, h5py.Dataset):
                yield prefix + name, found
            elif isinstance(found, h5py.Group) and found.id.__hash__() not in seen:
                seen.add(found.id.__hash__())
                waiting.append((f"{prefix}{name}/", found))


def _problem(found: Any) -> str | None:
    """Return why a dataset is not read, None if it is."""
    import h5py

    if not isinstance(found, h5py.Dataset) or not found.shape:
        return "is no array; set the name of a dataset"
    if found.external or found.is_virtual:
        return "keeps its data in other files; copy the data into the file"
    plist = cast("Any", found.id).get_create_plist()
    filters = [plist.get_filter(i) for i in range(plist.get_nfilters())]
    for number, _, _, name in filters:
        if number not in FILTERS:
            label = shown(name.decode("utf-8", "replace")) or number
            return f"is compressed by a filter that is not built in ({label}); use gzip or lzf"
    limit = memory_bytes() // 4
    row = found.dtype.itemsize * int(np.prod(found.shape[1:], dtype=object))
    chunk = found.dtype.itemsize * int(np.prod(found.chunks or (0,), dtype=object))
    if max(row, chunk) > limit:
        return f"takes {max(row, chunk) / 1e9:.1f} GB to read a row; store it in smaller chunks"
    base = h5py.check_vlen_dtype(found.dtype)
    if found.dtype.hasobject and base != np.uint8:
        return (
            "holds text or references; store encoded images as bytes of variable length: "
            "h5py.vlen_dtype('uint8')"
        )
    return None
