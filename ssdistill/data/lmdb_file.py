"""Read values of an LMDB database by row, with one read-only handle per process."""

import os
import threading
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from ssdistill.data.bad_image import BadImage
from ssdistill.data.decode import open_regular
from ssdistill.data.handles import PerProcess, require
from ssdistill.errors import NO_FILE, UserError, one_line, shown, system_reason

DATA = "data.mdb"
METADATA = ("__", "length", "num-samples", "num_samples", "classnames")
"""Prefixes of keys that describe the whole database rather than an image."""
LONGEST_KEY = 511
"""LMDB's limit, in bytes."""
_environments: WeakValueDictionary[str, Any] = WeakValueDictionary()
"""Open environments by path; a process must not open a database twice."""
_lock = threading.Lock()


def _close_in_child() -> None:
    """Close the parent's environments in a child process: LMDB handles do not survive a fork."""
    global _lock
    _lock = threading.Lock()
    for environment in list(_environments.values()):
        environment.close()
    _environments.clear()


os.register_at_fork(after_in_child=_close_in_child)


class LmdbFile:
    """An LMDB database.

    Args:
        path: the file, or the folder with ``data.mdb``.
        where: the key and the path, for messages.

    Raises:
        UserError: from any method, if the file is missing, truncated or damaged, or lmdb is not
            installed.
    """

    def __init__(self, path: Path, where: str):
        self.path, self.where = path, where
        self._environment = PerProcess(partial(_opened, path, where))

    @property
    def file(self) -> Path:
        return _data_file(self.path)

    def get(self, key: bytes) -> bytes | None:
        """Return a copy of a value, None if there is none; BadImage if it is damaged."""
        environment = self._environment()
        import lmdb

        try:
            # Transactions belong to one thread, and take a microsecond.
            with environment.begin() as transaction:
                return transaction.get(key)
        except (lmdb.Error, MemoryError) as error:
            raise BadImage(f"damaged ({one_line(error)})") from error

    def keys(self) -> "Keys":
        """Return all keys except metadata, in order; no value is read."""
        require("lmdb", "lmdb", "data.kind=lmdb")
        import lmdb

        try:
            with self._environment().begin() as transaction:
                cursor = transaction.cursor()
                skipped = tuple(name.encode() for name in METADATA)
                keys = cursor.iternext(keys=True, values=False)
                return Keys(key for key in keys if not key.startswith(skipped))
        except lmdb.Error as error:
            raise self.damaged(error) from error

    def pattern(self, pattern: str) -> "Pattern":
        """Return the keys that match a pattern such as ``%08d``, numbered from 0 or 1."""
        return Pattern(self, pattern)

    def damaged(self, error: Exception) -> UserError:
        return UserError(f"{self.where}: damaged ({one_line(error)}); copy it again")

    @property
    def identity(self) -> str:
        """Size and time of the file, as text."""
        status = os.stat(self.file)
        return f"{status.st_size} {status.st_mtime_ns}"


class Keys:
    """Keys stored in one array of bytes, to avoid one Python object per key."""

    def __init__(self, keys: Any):
        ends, content = [0], bytearray()
        lengths = np.empty(1024, np.uint16)
        count = 0
        for key in keys:
            if count == len(lengths):
                lengths = np.resize(lengths, 2 * count)
            lengths[count] = len(key)
            content += key
            count += 1
        self._content = bytes(content)
        self._end_N = np.concatenate([ends, np.cumsum(lengths[:count], dtype=np.int64)])

    def __len__(self) -> int:
        return len(self._end_N) - 1

    def __getitem__(self, row: int) -> bytes:
        return self._content[self._end_N[row] : self._end_N[row + 1]]


class Pattern:
    """Keys numbered by a pattern; their count is found by bisection.

    Raises:
        UserError: the pattern is invalid, or its first key is missing.
    """

    def __init__(self, file: LmdbFile, pattern: str):
        self._pattern = pattern
        try:
            valid = (pattern % 7).encode() != pattern.encode()
        except (TypeError, ValueError):
            valid = False
        if not valid or len(pattern) > LONGEST_KEY:
            raise UserError(
                f"data.image_key={shown(pattern)[:80]}: expected a pattern of one number, such as "
                "%08d or image-%09d"
            )
        self._first = next((n for n in (0, 1) if self._has(file, n)), -1)
        if self._first < 0:
            first = shown(pattern % 0)
            raise UserError(f"{file.where} has no key '{first}'; correct data.image_key")
        low, high = 0, 1
        while self._has(file, self._first + high):
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._has(file, self._first + middle) else (low, middle)
        self._count = high

    def _has(self, file: LmdbFile, number: int) -> bool:
        try:
            return file.get((self._pattern % number).encode()) is not None
        except BadImage as error:
            raise UserError(f"{file.where}: {error.reason}; copy it again") from error

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, row: int) -> bytes:
        return (self._pattern % (self._first + row)).encode()


class LmdbRows:
    """The encoded images stored under the given keys."""

    def __init__(self, file: LmdbFile, keys: Keys | Pattern):
        self.keys, self._file = keys, file
        self.identity = file.identity

    def __len__(self) -> int:
        return len(self.keys)

    def name(self, row: int) -> str:
        return self.keys[row].decode("utf-8", "backslashreplace")

    def read(self, row: int) -> bytes:
        value = self._file.get(self.keys[row])
        if value is None:
            raise BadImage("its key is not in the database")
        return value


def listed_keys(path: Path, where: str) -> Keys:
    """Read keys from a text file, one per line.

    Raises:
        UserError: the file cannot be read, is empty, or a line is too long.
    """
    try:
        with open_regular(path) as file:
            lines = (line.rstrip(b"\r\n") for line in file)
            keys = Keys(_checked(line, where) for line in lines if line)
    except BadImage as error:
        raise UserError(
            f"{where}: {error.reason}; pass a text file with one key per line"
        ) from error
    except OSError as error:
        raise UserError(f"{where}: {system_reason(error)}; check the path") from error
    if not len(keys):
        raise UserError(f"{where}: the file is empty; write one key per line")
    return keys


def _checked(line: bytes, where: str) -> bytes:
    if len(line) > LONGEST_KEY:
        raise UserError(
            f"{where}: a line has {len(line)} bytes, a key at most {LONGEST_KEY}; write one key "
            "per line"
        )
    return line


def _data_file(path: Path) -> Path:
    return path / DATA if path.is_dir() else path


def _opened(path: Path, where: str) -> Any:
    file = _data_file(path)
    with _lock:
        place = str(file.resolve())
        environment = _environments.get(place)
        if environment is None:
            environment = _environments[place] = _newly_opened(file, where)
        return environment


def _newly_opened(file: Path, where: str) -> Any:
    require("lmdb", "lmdb", "data.kind=lmdb")
    import lmdb

    try:
        open_regular(file).close()
        environment = lmdb.open(
            str(file), subdir=False, readonly=True, lock=False, create=False, readahead=False
        )
    except BadImage as error:
        raise UserError(f"{where}: {error.reason}; pass an LMDB database") from error
    except FileNotFoundError as error:
        here = file.name == DATA and file.parent.is_dir()
        reason = f"no {DATA} in this folder" if here else NO_FILE
        raise UserError(f"{where}: {reason}; pass an LMDB database") from error
    except OSError as error:
        raise UserError(f"{where}: {system_reason(error)}; check the path") from error
    except lmdb.Error as error:
        reason = one_line(error).removeprefix(f"{file}: ")
        raise UserError(f"{where}: {reason}; pass an LMDB database") from error
    # Reading beyond the end of a mapped file would kill the process.
    expected = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    size = file.stat().st_size
    if size < expected:
        environment.close()
        raise UserError(f"{where}: truncated to {size} of {expected} bytes; copy it again")
    return environment
