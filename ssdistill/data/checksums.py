"""Checksums of a file, block by block, to detect and locate flipped bits.

A gigabyte in memory takes 0.25 s on one core (``zlib.crc32``; 0.6 s on a machine whose two cores
are busy), and blocks are checked on all cores. A cold file is read at disk speed.
"""

import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

BLOCK_BYTES = 4 << 20


def block_checksums(path: Path) -> list[int]:
    """Return the CRC-32 of every ``BLOCK_BYTES`` of a file; the last block may be shorter."""
    size = os.path.getsize(path)
    if size == 0:
        return []
    content = np.memmap(path, dtype=np.uint8, mode="r")
    starts = range(0, size, BLOCK_BYTES)
    if len(starts) == 1:
        return [zlib.crc32(content.data)]
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        # crc32 releases the GIL.
        return list(pool.map(lambda at: zlib.crc32(content[at : at + BLOCK_BYTES].data), starts))
