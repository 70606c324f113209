"""Read and validate files of finished stages; damaged files are reported by name."""

import json
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ssdistill.errors import DamagedFile, UserError

UNREADABLE = (
    EOFError,
    KeyError,
    MemoryError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
)
"""Exceptions of JSON and NumPy for invalid content."""


def read_json(path: Path, holds: Callable[[Any], bool]) -> Any:
    """The content of a JSON file.

    Args:
        holds: whether the content has the form it should have; may raise where it has not.

    Raises:
        DamagedFile: it is not JSON, or of another form.
        UserError: it cannot be read.
    """
    with _reading(path):
        content = json.loads(path.read_text(encoding="utf-8"))
        if not holds(content):
            raise ValueError("unexpected structure")
    return content


def read_array(path: Path, ndim: int, kind: str, rows: int | None = None) -> np.ndarray:
    """The array of a ``.npy`` file, of ``ndim`` axes.

    Args:
        kind: of its numbers, as in ``numpy.dtype.kind``.
        rows: length of the first axis; None for any but 0.

    Raises:
        DamagedFile: it is no such array.
        UserError: it cannot be read.
    """
    with _reading(path):
        array = np.load(path, allow_pickle=False)
        _check_array(array, ndim, kind)
        if array.size == 0 or (rows is not None and len(array) != rows):
            raise ValueError(f"shape {array.shape}")
    return array


def read_arrays(path: Path, ndim: int, kind: str) -> dict[str, np.ndarray]:
    """The arrays of a ``.npz`` file by name, of ``ndim`` axes and equally long.

    Raises:
        DamagedFile: it holds no such arrays.
        UserError: it cannot be read.
    """
    with _reading(path), np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
        for array in arrays.values():
            _check_array(array, ndim, kind)
        if len({len(array) for array in arrays.values()}) != 1:
            raise ValueError("arrays of different lengths")
    return arrays


def _check_array(array: Any, ndim: int, kind: str) -> None:
    if not isinstance(array, np.ndarray) or array.ndim != ndim or array.dtype.kind not in kind:
        shown = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else "not an array"
        raise ValueError(shown)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        if path.exists() and not path.is_file():
            # Opening a named pipe would wait for a writer.
            raise DamagedFile(path, "is a folder" if path.is_dir() else "not a file")
        yield
    except FileNotFoundError as error:
        raise DamagedFile(path, "missing") from error
    except UserError:
        raise
    except OSError as error:
        # NumPy says so of text, too, without a number.
        if error.errno is None:
            raise DamagedFile(path, error) from error
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); check its permissions"
        ) from error
    except UNREADABLE as error:
        raise DamagedFile(path, str(error) or type(error).__name__) from error
