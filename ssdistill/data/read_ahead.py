"""Read all images of a batch ahead at once, for stores larger than memory."""

import mmap

import numpy as np


class ReadAhead:
    """Announces rows of a memory-mapped array before they are copied.

    Without it, copying a batch waits for the disk once for every page that is not in memory, one
    after the other; with it, the system reads them side by side.

    Args:
        array: (N, …) of whatever kind; one that is not mapped to a file needs no announcing.
    """

    def __init__(self, array: np.ndarray):
        file = getattr(array, "_mmap", None)
        # A part of a map claims to begin where the whole does.
        whole = file is not None and array.base is file
        self._file = file if whole and hasattr(mmap, "MADV_WILLNEED") and len(array) else None
        self._row_bytes = array.nbytes // max(1, len(array))
        # The map begins at a whole page of the file, the array behind its header.
        self._start = getattr(array, "offset", 0) % mmap.ALLOCATIONGRANULARITY

    def __call__(self, rows_B: np.ndarray) -> None:
        """Have the system read these rows; returns without waiting for them."""
        if self._file is None:
            return
        for start, length in self.ranges(rows_B):
            self._file.madvise(mmap.MADV_WILLNEED, start, length)

    def ranges(self, rows_B: np.ndarray) -> list[tuple[int, int]]:
        """Start and length in bytes within the map of each row, from the page it begins in."""
        begins_B = self._start + rows_B.astype(np.int64) * self._row_bytes
        starts_B = begins_B - begins_B % mmap.PAGESIZE
        lengths_B = begins_B + self._row_bytes - starts_B
        return list(zip(starts_B.tolist(), lengths_B.tolist(), strict=True))
