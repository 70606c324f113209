"""Write ``.npz`` files piece by piece, the same bytes at every time."""

import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from ssdistill.label_free.embedding.parts import Part, all_names
from ssdistill.label_free.embedding.row_file import TENSOR, Rows, npy_header
from ssdistill.label_free.rows import piece_rows

BEGINNING = (1980, 1, 1, 0, 0, 0)
"""The first time that a zip archive can hold."""
SPLIT_TYPE = np.dtype("<U5")


def write_npz(path: Path, rows: Rows, parts: Sequence[Part], facts: dict[str, str]) -> None:
    """Write ``embeddings`` (N, …), ``names`` (N,) and ``splits`` (N,)."""
    longest = max((len(name) for _, names in all_names(parts) for name in names), default=1)
    name_type = np.dtype(f"<U{max(1, longest)}")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        write_member(archive, TENSOR, rows.shape, rows.dtype, pieces(rows))
        names = (np.array(names, name_type) for _, names in all_names(parts))
        write_member(archive, "names", rows.shape[:1], name_type, names)
        splits = (np.full(len(names), split, SPLIT_TYPE) for split, names in all_names(parts))
        write_member(archive, "splits", rows.shape[:1], SPLIT_TYPE, splits)


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays, which may be mapped from disk, by name."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            write_member(archive, name, array.shape, array.dtype, pieces(array))


def write_member(
    archive: zipfile.ZipFile,
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype,
    parts: Iterable[np.ndarray],
) -> None:
    """Write one array, part by part."""
    info = zipfile.ZipInfo(f"{name}.npy", BEGINNING)
    info.external_attr = 0o644 << 16
    with archive.open(info, "w", force_zip64=True) as member:
        member.write(npy_header(shape, dtype))
        for part in parts:
            member.write(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)


def pieces(array: np.ndarray | Rows) -> Iterator[np.ndarray]:
    """Yield an array in parts that fit in memory."""
    step = piece_rows(max(1, array[:1].size))
    for start in range(0, len(array), step):
        yield array[start : start + step]
