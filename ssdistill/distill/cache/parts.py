"""Recorded rows on disk, in parts that are complete or absent."""

import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from ssdistill.distill.cache.key import KEY, Key
from ssdistill.errors import UserError
from ssdistill.files import disk_errors, locked_by, write_atomically

OUTPUTS = "outputs.f16"
ROWS = 1024
"""Images of a part: what a kill can lose."""


class Held(Exception):
    """Another process holds the lock of a part."""


class Parts:
    """The rows of all images in all passes, (V * N, W) float16 in one file, and their checksums.

    A part is ``ROWS`` images of one pass. Its checksum is written once its rows are on the disk,
    so that a part without one counts as absent. Every part has a lock of its own.

    Args:
        folder: of the cache.
        passes, num_images, width: V, N and W.
    """

    def __init__(self, folder: Path, passes: int, num_images: int, width: int):
        self.folder, self.passes = folder, passes
        self.num_images, self.width = num_images, width
        self.per_pass = -(-num_images // ROWS)

    def __len__(self) -> int:
        return self.passes * self.per_pass

    @property
    def num_bytes(self) -> int:
        """Bytes of all rows."""
        return 2 * self.passes * self.num_images * self.width

    def create(self, key: Key) -> None:
        """Make the folder and a file of at least the right size, unless they are there.

        Raises:
            UserError: the disk is too small, or something else stands in the place of a file.
        """
        path = self.folder / OUTPUTS
        with disk_errors(self.folder):
            (self.folder / "parts").mkdir(parents=True, exist_ok=True)
            with locked_by(self.folder / ".lock", on_wait=lambda: None):
                if os.path.lexists(path) and not path.is_file():
                    raise UserError(f"{path}: expected a file; remove {self.folder} and run again")
                size = path.stat().st_size if path.exists() else 0
                if size < self.num_bytes:  # it may hold more passes
                    check_free(self.folder, self.num_bytes - size)
                    with path.open("ab") as file:
                        file.truncate(self.num_bytes)
                if not (self.folder / KEY).exists():
                    write_atomically(self.folder / KEY, json.dumps(key, indent=1) + "\n")

    def place(self, part: int) -> tuple[int, int, int]:
        """Return the pass of a part, its first image and the one after its last."""
        number, block = divmod(part, self.per_pass)
        return number, block * ROWS, min((block + 1) * ROWS, self.num_images)

    def write(self, part: int, row_nW: np.ndarray) -> None:
        """Write the rows (n, W) of a part, int16 with the bits of float16, then its checksum.

        The lock of the part must be held.
        """
        number, start, end = self.place(part)
        content = np.ascontiguousarray(row_nW, dtype="<i2").tobytes()
        if len(content) != 2 * (end - start) * self.width:
            raise ValueError(f"part {part}: got rows of shape {row_nW.shape}")
        with disk_errors(self.folder):
            with (self.folder / OUTPUTS).open("r+b") as file:
                file.seek(2 * (number * self.num_images + start) * self.width)
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            write_atomically(self._mark(part), json.dumps({"crc32": zlib.crc32(content)}) + "\n")

    def status(self, part: int) -> str:
        """Return ``complete``, ``absent``, or ``damaged`` if the checksum is that of other rows."""
        try:
            text = self._mark(part).read_text(encoding="utf-8")
        except FileNotFoundError:
            return "absent"
        except (OSError, ValueError):
            return "damaged"
        try:
            crc32 = json.loads(text)["crc32"]
        except (KeyError, RecursionError, TypeError, ValueError):
            return "damaged"
        number, start, end = self.place(part)
        first = number * self.num_images
        rows = self.rows()[first + start : first + end]
        return "complete" if zlib.crc32(rows.data) == crc32 else "damaged"

    def statuses(self) -> list[str]:
        """Return the status of every part; all bytes are read once."""
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            # crc32 releases the GIL.
            return list(pool.map(self.status, range(len(self))))

    def rows(self) -> np.memmap:
        """Return all rows, (V * N, W) float16, mapped from the disk."""
        shape = (self.passes * self.num_images, self.width)
        return np.memmap(self.folder / OUTPUTS, dtype="<f2", mode="r", shape=shape)

    @contextmanager
    def locked(self, part: int, on_wait: Callable[[], object] | None = None) -> Iterator[None]:
        """Hold the lock of a part.

        Args:
            on_wait: called before waiting for another process; None does not wait.

        Raises:
            Held: another process holds it.
        """
        path = self._mark(part).with_suffix(".lock")
        with locked_by(path, on_wait or _give_up):
            yield
            # Whoever waits for it finds the part complete, so that no lock is needed any more.
            with suppress(OSError):
                path.unlink()

    def _mark(self, part: int) -> Path:
        return self.folder / "parts" / f"{part:06}.json"


def _give_up() -> None:
    raise Held


def check_free(folder: Path, num_bytes: int, key: str = "cache") -> None:
    """Check that so many bytes fit on the disk of a folder, which need not exist yet.

    Raises:
        UserError: they do not.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(there).free
    if num_bytes > free:
        raise UserError(
            f"{key}: recorded outputs of teachers take {num_bytes / 1e9:,.1f} GB, but only "
            f"{free / 1e9:,.1f} GB are free in {folder}; lower cache.views or set cache=null"
        )
