"""Limits on the size of multi-band images."""

import threading
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from PIL import Image

from ssdistill.data.bad_image import BadImage
from ssdistill.data.header import too_large
from ssdistill.machine import memory_bytes

MOST_BANDS = 4096
GIANT_BYTES = 1 << 28
"""Larger images are decoded one at a time, to have only one in memory instead of one per core."""
_one_giant = threading.Lock()


def decoding(num_bytes: int) -> AbstractContextManager[Any]:
    """Return a context for decoding an image of that size."""
    return _one_giant if num_bytes > GIANT_BYTES else nullcontext()


def check_sizes(height: int, width: int, bands: int, itemsize: int) -> None:
    """Raise BadImage if pixels exceed ``data.max_pixels``, or the bands do not fit into memory."""
    limit = Image.MAX_IMAGE_PIXELS
    if min(height, width, bands) < 1:
        raise BadImage(f"{width}x{height} pixels of {bands} bands; an image has at least one")
    if limit is not None and height * width > limit:
        raise BadImage(f"{width}x{height} is {too_large()}")
    if bands > MOST_BANDS:
        raise BadImage(f"{bands} bands, more than {MOST_BANDS}; save fewer per file")
    if height * width * bands * itemsize > memory_bytes() // 4:
        raise BadImage(f"{width}x{height} pixels of {bands} bands do not fit into memory")
