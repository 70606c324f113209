"""Prefetch all images of a batch in parallel, for stores larger than memory."""

import mmap

import numpy as np


class ReadAhead:
    """Announce rows of a memory-mapped array before they are copied.

    Otherwise, copying a batch would wait for every page that is not in memory, one by one; the
    system reads announced pages in parallel.

    Args:
        array: (N, …); nothing is announced unless it is mapped to a file.
    """

    def __init__(self, array: np.ndarray):
        file = getattr(array, "_mmap", None)
        # The offset of a slice is that of the whole map, so slices are not supported.
        whole = file is not None and array.base is file
        self._file = file if whole and hasattr(mmap, "MADV_WILLNEED") and len(array) else None
        self._row_bytes = array.nbytes // max(1, len(array))
        # The map begins at a page boundary of the file, the array after its header.
        self._start = getattr(array, "offset", 0) % mmap.ALLOCATIONGRANULARITY

    def __call__(self, rows_B: np.ndarray) -> None:
        """Ask the system to read the rows, without waiting for them."""
        if self._file is None:
            return
        for start, length in self.ranges(rows_B):
            self._file.madvise(mmap.MADV_WILLNEED, start, length)

    def ranges(self, rows_B: np.ndarray) -> list[tuple[int, int]]:
        """Return start and length of each row in the map, in bytes, from a page boundary."""
        begins_B = self._start + rows_B.astype(np.int64) * self._row_bytes
        starts_B = begins_B - begins_B % mmap.PAGESIZE
        lengths_B = begins_B + self._row_bytes - starts_B
        return list(zip(starts_B.tolist(), lengths_B.tolist(), strict=True))
