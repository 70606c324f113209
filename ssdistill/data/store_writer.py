"""Decode a split's images on all cores and write them as one array."""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any

import numpy as np

from ssdistill.data.decode import BadImage, square
from ssdistill.data.deep_pixels import Window, full_range, render, split_alpha
from ssdistill.data.moments import Moments, pixel_notices
from ssdistill.data.progress import with_bar
from ssdistill.data.splits import RawSplit
from ssdistill.errors import UserError, shown

CHUNK_BYTES, CHUNK_IMAGES = 8 << 20, 512


def write_images(
    file: IO[bytes],
    raw: RawSplit,
    size: int,
    max_bad: float,
    window: Window | None = None,
    automatic: bool = True,
) -> dict:
    """Write a split's squares as one ``.npy`` file; return the metadata of the store.

    The file is written sequentially, not through a memory map: on a full disk a write raises an
    error, while an assignment to mapped memory kills the process.

    Args:
        window: values that map to black and white, for images of more than 8 bits.
        automatic: whether the window was chosen from the images; if so, clipping is reported.
    """
    digest, moments = _digest(size), Moments()
    names: list[str] = []
    bad: list[tuple[str, str]] = []
    bad_rows: list[int] = []
    squarer = Squarer(raw, size, window)
    _write_header(file, len(raw), size)
    for rows, squares in with_bar(_chunks(raw, squarer), len(raw), f"decoding {raw.title}"):
        for row, image in zip(rows, squares, strict=True):
            if isinstance(image, BadImage):
                bad.append((raw.name(row), image.reason))
                bad_rows.append(row)
            else:
                names.append(raw.name(row))
        check_bad_fraction(raw.title, bad, len(raw), max_bad)
        good = [image for image in squares if not isinstance(image, BadImage)]
        if good:
            images_NHWC = np.ascontiguousarray(np.stack(good))
            file.write(images_NHWC)
            digest.update(images_NHWC)
            moments.add(images_NHWC)
    if not names:
        raise UserError(f"{shown(raw.title)}: no image can be read{_first(bad)}; replace them")
    file.seek(0)
    _write_header(file, len(names), size)
    mean, std = moments.mean_std()
    clipped = squarer.clipped if automatic else 0.0
    return {
        "fingerprint": _finish(digest, names, window),
        "mean": mean,
        "std": std,
        "bad": bad,
        "bad_rows": bad_rows,
        "names": names,
        "window": window,
        "notices": pixel_notices(moments, window, clipped, raw.notes(), len(raw)),
    }


def fingerprint_of(images_NHWC: np.ndarray, names: list[str], window: Window | None = None) -> str:
    """Compute the fingerprint of stored images from their pixels."""
    digest = _digest(images_NHWC.shape[1])
    step = max(1, CHUNK_BYTES // images_NHWC[0].nbytes)
    for start in range(0, len(images_NHWC), step):
        digest.update(np.ascontiguousarray(images_NHWC[start : start + step]))
    return _finish(digest, names, window)


def _digest(size: int) -> Any:
    return hashlib.sha256(f"{size}\n".encode())


def _finish(digest: Any, names: list[str], window: Window | None) -> str:
    digest.update("\0".join(names).encode("utf-8", "surrogateescape"))
    if window:
        digest.update(f"\0window {window}".encode())
    return digest.hexdigest()


def _write_header(file: IO[bytes], count: int, size: int) -> None:
    # numpy pads the header, so its length does not depend on the first axis.
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, size, size, 3)}
    np.lib.format.write_array_header_1_0(file, header)


class Squarer:
    """Read images of a split as uint8 squares.

    Attributes:
        clipped: fraction of the deep images' pixels beyond the window.
    """

    def __init__(self, raw: RawSplit, size: int, window: Window | None):
        self.raw, self.size, self.window = raw, size, window
        self._beyond: list[float] = []

    def __call__(self, row: int) -> np.ndarray | BadImage:
        try:
            pixels = self.raw.image(row)
        except BadImage as error:
            return error
        if pixels.dtype != np.uint8:
            window = self.window or full_range(pixels.dtype)
            color, _ = split_alpha(pixels)
            self._beyond.append(float(((color < window[0]) | (color > window[1])).mean()))
            pixels = render(pixels, window)
        return square(pixels, self.size)

    @property
    def clipped(self) -> float:
        return sum(self._beyond) / max(1, len(self._beyond))


def _chunks(raw: RawSplit, squarer: Squarer) -> Iterator[tuple[range, list[np.ndarray | BadImage]]]:
    """Yield rows of a split and their squares, in order, decoded by one thread per core.

    Threads suffice: Pillow releases the GIL while it decodes and resizes.
    """
    workers, size = os.cpu_count() or 1, squarer.size
    length = max(8 * workers, min(CHUNK_IMAGES, CHUNK_BYTES // (size * size * 3)))
    array = raw.array()
    unchanged = array is not None and array.shape[1:] == (size, size, 3)
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(raw), length):
            rows = range(start, min(start + length, len(raw)))
            if unchanged:
                yield rows, list(array[rows.start : rows.stop])
            else:
                yield rows, list(pool.map(squarer, rows))


def check_bad_fraction(title: str, bad: list[tuple[str, str]], total: int, max_bad: float) -> None:
    """Raise UserError if ``bad`` holds more than a fraction ``max_bad`` of ``total`` images."""
    if len(bad) > max_bad * total:
        raise UserError(
            f"{shown(title)}: more than {max_bad:.1%} of {total} images cannot be read"
            f"{_first(bad)}; replace them, or raise data.max_bad to skip them"
        )


def _first(bad: list[tuple[str, str]]) -> str:
    name, reason = bad[0]
    return f" (first: {shown(name)}: {reason})"
