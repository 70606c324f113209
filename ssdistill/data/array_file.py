"""User-supplied arrays, in an ``.npz`` file or in memory, validated before use."""

import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, TypeVar

import numpy as np

from ssdistill.data.array_names import listed
from ssdistill.data.bad_image import BadImage
from ssdistill.data.decode import open_regular
from ssdistill.errors import UserError, one_line, system_reason
from ssdistill.machine import memory_bytes

DEFLATED_AT_MOST = 1100
"""Upper bound on the expansion factor of deflate, which is about 1032."""
NPY = b"\x93NUMPY"
EXAMPLE = "numpy.savez(FILE, train_images=…, test_images=…)"
T = TypeVar("T")


def check_image_array(shape: tuple[int, ...], dtype: np.dtype, name: str) -> None:
    """Check that an array holds images.

    Raises:
        UserError: wrong number of axes or channels, an empty array, or no real numbers.
    """
    gray, color = len(shape) == 3, len(shape) == 4 and shape[3] == 3
    if dtype.kind in "buif" and (gray or color) and 0 not in shape:
        return
    facts = f"it is {dtype} of shape {' x '.join(map(str, shape)) or '()'}"
    raise UserError(
        f"{name} must be a non-empty array of N x H x W or N x H x W x 3, uint8 or other real "
        f"numbers (see data.window); {facts}{_hint(shape, dtype)}"
    )


def _hint(shape: tuple[int, ...], dtype: np.dtype) -> str:
    if 0 in shape:
        return "; add images"
    if dtype.kind not in "buif":
        return "; save numbers"
    if len(shape) == 4 and shape[1] in (1, 3) and shape[3] not in (1, 3):
        return "; put the channels last with .transpose(0, 2, 3, 1)"
    if len(shape) == 4 and shape[3] == 1:
        return "; drop the last axis with [..., 0]"
    if len(shape) == 4 and shape[3] == 4:
        return "; keep three channels with [..., :3]"
    return "; reshape it"


class NpzFile:
    """A ``.npz`` file. Nothing is unpickled, and declared sizes are verified.

    Raises:
        UserError: from the constructor, if the file is missing, not regular or not ``.npz``.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            with open_regular(path) as file, zipfile.ZipFile(file) as archive:
                members = archive.infolist()
        except BadImage as error:
            raise UserError(f"data.path={path}: {error.reason}; pass an .npz file") from error
        except Exception as error:  # zipfile raises all kinds of errors on damaged bytes
            if getattr(error, "strerror", None):
                reason = f"{system_reason(error)}; check the path"
            else:
                reason = self._not_npz()
            raise UserError(f"data.path={path}: {reason}") from error
        self._members = {m.filename.removesuffix(".npy"): m for m in members}

    def _not_npz(self) -> str:
        try:
            with open_regular(self.path) as file:
                single = file.read(len(NPY)) == NPY
        except OSError as error:
            return f"{system_reason(error)}; check the path"
        remedy = " but a single array; save splits with" if single else "; create one with"
        return f"not an .npz file{remedy} {EXAMPLE}"

    @property
    def keys(self) -> list[str]:
        return list(self._members)

    def require(self, *keys: str) -> None:
        """Raise UserError if a key is missing from the file."""
        for key in keys:
            if key not in self._members:
                raise UserError(
                    f"data.path={self.path} has no array '{key}', only {listed(self.keys)}; save "
                    f"with {EXAMPLE}"
                )

    def checksum(self, key: str) -> str:
        """Return the CRC-32 and size of an array, from the zip directory."""
        member = self._members[key]
        return f"{member.CRC:08x}-{member.file_size}"

    def header(self, key: str) -> tuple[tuple[int, ...], np.dtype]:
        """Return shape and dtype of an array without loading it.

        Raises:
            UserError: a missing array, a damaged header, or a size that contradicts it.
        """
        return self._read(key, lambda file: self._checked_header(key, file))

    def load(self, key: str) -> np.ndarray:
        """Load a whole array.

        Raises:
            UserError: as for :meth:`header`; also Python objects, damaged or encrypted bytes,
                or an array that does not fit into memory.
        """

        def read_all(file: IO[bytes]) -> np.ndarray:
            _, dtype = self._checked_header(key, file)
            if dtype.hasobject:
                raise ValueError("it has Python objects, which are never unpickled; save numbers")
            if self._members[key].file_size > memory_bytes():
                raise MemoryError
            file.seek(0)
            array = np.lib.format.read_array(file, allow_pickle=False)
            # Reading to the end verifies the checksum.
            if file.read(1):
                raise ValueError("trailing bytes after the array")
            return array

        return self._read(key, read_all)

    def _read(self, key: str, read: Callable[[IO[bytes]], T]) -> T:
        self.require(key)
        try:
            with (
                open_regular(self.path) as plain,
                zipfile.ZipFile(plain) as archive,
                archive.open(self._members[key]) as file,
            ):
                return read(file)
        except MemoryError as error:
            size = self._members[key].file_size
            raise UserError(
                f"data.path={self.path}: '{key}' takes {size / 1e9:.1f} GB and does not fit into "
                "memory; save fewer or smaller images"
            ) from error
        except Exception as error:  # zipfile, zlib and numpy raise all kinds of errors
            encrypted = self._members[key].flag_bits & 1
            reason = "it is encrypted; save it without a password" if encrypted else one_line(error)
            raise UserError(f"data.path={self.path}: cannot read '{key}' ({reason})") from error

    def _checked_header(self, key: str, file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0
        if version != (1, 0):
            read = np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        member = self._members[key]
        declared = file.tell() + math.prod(shape) * dtype.itemsize
        usual = member.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
        if usual and member.file_size > DEFLATED_AT_MOST * (member.compress_size + 1):
            raise ValueError(
                f"{member.compress_size} compressed bytes cannot expand to {member.file_size}; "
                "save the file again"
            )
        if not dtype.hasobject and (min(shape, default=0) < 0 or declared != member.file_size):
            raise ValueError(
                f"its header declares {declared} bytes, but it has {member.file_size}; save the "
                "file again"
            )
        return shape, dtype


def map_array(path: Path, name: str) -> np.ndarray:
    """Memory-map the array of a ``.npy`` file, read-only; nothing is unpickled.

    Args:
        name: of the file in messages.

    Raises:
        UserError: the file is missing, not regular, not ``.npy`` or truncated, or holds Python
            objects.
    """
    try:
        with open_regular(path) as file:
            if file.read(len(NPY)) != NPY:
                raise UserError(f"{name}: not an .npy file; create one with numpy.save(FILE, …)")
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except BadImage as error:
        raise UserError(f"{name}: {error.reason}; set it to an .npy file") from error
    except OSError as error:
        raise UserError(f"{name}: {system_reason(error)}; check the path") from error
    except (ValueError, OverflowError, MemoryError, RecursionError, SyntaxError) as error:
        raise UserError(f"{name}: cannot be read ({one_line(error)}); save it again") from error
