"""Read shards from local disks, or from remote storage with fsspec."""

import hashlib
import os
import re
import threading
from abc import ABC, abstractmethod
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from glob import escape, glob, has_magic
from pathlib import Path
from typing import IO, Any

from ssdistill.data.bad_image import BadImage
from ssdistill.data.decode import open_regular
from ssdistill.errors import UserError, one_line, shown
from ssdistill.files import user_path

HANDLES = 128
"""Number of shards to keep open; the usual limit of a process is 1024 files."""
NEAR, FAR = 8 << 10, 4 << 20
"""Bytes per read when searching for headers, on local disks and remotely."""
REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
VERSIONS = ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated", "created")
"""Names that file systems use for the version of a file."""


@dataclass(frozen=True)
class Shard:
    """One archive.

    Attributes:
        place: its path or URL.
        size: in bytes.
        version: changes with its content.
    """

    place: str
    size: int
    version: str

    @property
    def name(self) -> str:
        return self.place.rsplit("/", 1)[-1]

    @property
    def number(self) -> int:
        """A hash of name, size and version, 64 bits."""
        text = f"{self.name}\0{self.size}\0{self.version}"
        digest = hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8)
        return int.from_bytes(digest.digest(), "little")


class Storage(ABC):
    """Read parts of files; safe to use from several threads."""

    far: bool
    """Whether reads are remote requests with high latency."""

    @abstractmethod
    def find(self, pattern: str) -> list[str]:
        """Return the files that match a name with ``*``, sorted."""

    @abstractmethod
    def shard(self, place: str) -> Shard:
        """Return size and version of a file; raise OSError or BadImage if it is not a file."""

    @abstractmethod
    def read(self, shard: Shard, start: int, length: int) -> bytes:
        """Return ``length`` bytes of a file.

        Raises:
            OSError: the file is shorter, or the system failed.
            BadImage: the file has changed.
        """

    @abstractmethod
    def reader(self, shard: Shard) -> Any:
        """Return a context manager for ``read(start, length)`` of small parts in order."""


def storage_of(place: str) -> Storage:
    """Return the storage for a path or URL."""
    return Remote(place) if REMOTE.match(place) else Disk()


class Disk(Storage):
    """Local files, of which a limited number is kept open."""

    far = False

    def __init__(self) -> None:
        self._files: OrderedDict[str, IO[bytes]] = OrderedDict()
        self._users: Counter[str] = Counter()
        self._lock = threading.Lock()

    def find(self, pattern: str) -> list[str]:
        path = str(user_path(pattern))
        return sorted(glob(path)) if has_magic(path) and not os.path.exists(path) else [path]

    def below(self, folder: str) -> list[str]:
        """Return the archives in a folder; if there are none, those in its subfolders."""
        inside = escape(folder)
        return self.find(f"{inside}/*.tar") or self.find(f"{inside}/*/*.tar")

    def shard(self, place: str) -> Shard:
        with open_regular(place) as file:
            status = os.fstat(file.fileno())
        return Shard(place, status.st_size, str(status.st_mtime_ns))

    def read(self, shard: Shard, start: int, length: int) -> bytes:
        handle = self._acquire(shard)
        try:
            content = os.pread(handle, length, start)
            # A signal, or the system's limit, can end a read early.
            while 0 < len(content) < length:
                more = os.pread(handle, length - len(content), start + len(content))
                if not more:
                    break
                content += more
        finally:
            self._release(shard)
        return _check_length(content, length)

    def _acquire(self, shard: Shard) -> int:
        """Return a handle that stays open until :meth:`_release`."""
        with self._lock:
            if shard.place not in self._files:
                self._files[shard.place] = _opened(shard)
            self._files.move_to_end(shard.place)
            self._users[shard.place] += 1
            return self._files[shard.place].fileno()

    def _release(self, shard: Shard) -> None:
        with self._lock:
            self._users[shard.place] -= 1
            if len(self._files) > HANDLES:
                oldest = next((name for name in self._files if not self._users[name]), None)
                if oldest is not None:
                    self._files.pop(oldest).close()
                    del self._users[oldest]

    @contextmanager
    def reader(self, shard: Shard) -> Iterator[Callable[[int, int], bytes]]:
        with open_regular(shard.place) as file:
            yield BufferedReader(lambda start, length: os.pread(file.fileno(), length, start), NEAR)


def _opened(shard: Shard) -> IO[bytes]:
    file = open_regular(shard.place)
    status = os.fstat(file.fileno())
    if (status.st_size, str(status.st_mtime_ns)) != (shard.size, shard.version):
        file.close()
        raise BadImage(f"{shown(shard.name)} has changed; run the command again")
    return file


class Remote(Storage):
    """Remote files, read with fsspec: ``s3://``, ``gs://``, ``https://``, ``memory://``, ….

    Credentials come from the configuration and environment of fsspec.
    """

    far = True

    def __init__(self, place: str):
        self.protocol = place.partition("://")[0]

    @cached_property
    def _files(self) -> Any:
        try:
            import fsspec
        except ImportError:
            raise UserError(
                f"data.path={self.protocol}://… requires fsspec: pip install 'ssdistill[remote]'"
            ) from None
        try:
            return fsspec.filesystem(self.protocol)
        except (ImportError, ValueError) as error:
            raise UserError(
                f"data.path={self.protocol}://…: {one_line(error)}; check the address"
            ) from error

    def find(self, pattern: str) -> list[str]:
        # Only ``*`` is a pattern: in a URL, a question mark begins the query.
        if "*" not in pattern:
            return [pattern]
        with _system_errors():
            return sorted(self._files.unstrip_protocol(name) for name in self._files.glob(pattern))

    def shard(self, place: str) -> Shard:
        with _system_errors():
            facts = self._files.info(place)
        size = facts.get("size")
        if size is None or facts.get("type") == "directory":
            raise OSError("its size is unknown, so parts of it cannot be read")
        return Shard(place, int(size), next((str(facts[k]) for k in VERSIONS if facts.get(k)), ""))

    def read(self, shard: Shard, start: int, length: int) -> bytes:
        with _system_errors():
            content = self._files.cat_file(shard.place, start=start, end=start + length)
        if len(content) > length:
            raise BadImage("the server only sends whole files; copy the shards to a disk")
        return _check_length(content, length)

    @contextmanager
    def reader(self, shard: Shard) -> Iterator[Callable[[int, int], bytes]]:
        def part(start: int, length: int) -> bytes:
            length = min(length, shard.size - start)
            return self.read(shard, start, length) if length > 0 else b""

        yield BufferedReader(part, FAR)


class BufferedReader:
    """Read small parts of a file in order, through a buffer of larger pieces."""

    def __init__(self, read: Callable[[int, int], bytes], piece: int):
        self._read, self._piece = read, piece
        self._start, self._content = 0, b""

    def __call__(self, start: int, length: int) -> bytes:
        at = start - self._start
        if not 0 <= at <= len(self._content) - length:
            self._start, self._content, at = start, self._read(start, max(length, self._piece)), 0
        return self._content[at : at + length]


@contextmanager
def _system_errors() -> Iterator[None]:
    """Turn errors of fsspec's libraries into OSErrors, so that the read is retried.

    Errors of aiohttp and botocore are not OSErrors.
    """
    try:
        yield
    except (OSError, UserError):
        raise
    except Exception as error:
        raise OSError(one_line(error)) from error


def _check_length(content: bytes, length: int) -> bytes:
    if len(content) < length:
        raise OSError(f"got {len(content)} bytes instead of {length}")
    return content


def folder_of(place: str) -> Path:
    """Return the folder of a local file."""
    return Path(place).resolve().parent
