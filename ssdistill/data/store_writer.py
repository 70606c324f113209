"""Decode a split's images on all cores and write them as one array."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from typing import IO, Any

import numpy as np

from ssdistill.data.bad_image import BadImage
from ssdistill.data.deep_pixels import Window
from ssdistill.data.hanging_reads import AbandoningPool
from ssdistill.data.held_pixels import Holding, Squarer
from ssdistill.data.moments import Moments, channel_notices, pixel_notices
from ssdistill.data.progress import with_bar
from ssdistill.data.splits import RawSplit
from ssdistill.errors import UserError, shown
from ssdistill.settings import Size, height_width

CHUNK_BYTES, CHUNK_IMAGES = 8 << 20, 512
RGB_HELD = Holding()


def write_images(
    file: IO[bytes],
    raw: RawSplit,
    size: Size,
    max_bad: float,
    holding: Holding = RGB_HELD,
    automatic: bool = True,
) -> dict:
    """Write a split's images as one ``.npy`` file; return the metadata of the store.

    The file is written sequentially, not through a memory map: on a full disk a write raises an
    error, while an assignment to mapped memory kills the process.

    Args:
        holding: the channels, and the windows that are applied to them.
        automatic: whether windows were chosen from the images; if so, clipping is reported.
    """
    moments = Moments(holding.form.count, holding.dtype)
    digest = _new_hash(size, holding)
    names: list[str] = []
    bad: list[tuple[str, str]] = []
    bad_rows: list[int] = []
    squarer = Squarer(raw, size, holding)
    _write_header(file, len(raw), size, holding)
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
            file.write(images_NHWC.data)
            digest.update(images_NHWC)
            moments.add(images_NHWC)
    if not names:
        raise UserError(f"{shown(raw.title)}: no image can be read{_first(bad)}; replace them")
    file.seek(0)
    _write_header(file, len(names), size, holding)
    mean, std = moments.mean_std()
    clipped_C = squarer.clipped_C * automatic
    windows = {} if holding.scale is None else {"windows": holding.scale.windows}
    return {
        "fingerprint": _finish(digest, names, holding.window),
        "mean": mean,
        "std": std,
        "bad": bad,
        "bad_rows": bad_rows,
        "names": names,
        "window": holding.window,
        **windows,
        "notices": notices_of(holding, moments, clipped_C, raw.notes(), len(raw)),
    }


def notices_of(
    holding: Holding, moments: Moments, clipped_C: np.ndarray, notes: Sequence[str], total: int
) -> list[str]:
    """Return warnings about the pixels of images, one line each."""
    if holding.scale is None:
        return pixel_notices(moments, holding.window, float(clipped_C.max()), notes, total)
    return channel_notices(moments, holding.form, holding.scale, clipped_C, notes, total)


def fingerprint_of(images_NHWC: np.ndarray, names: list[str], window: Window | None = None) -> str:
    """Compute the fingerprint of stored square RGB images from their pixels."""
    digest = _new_hash(images_NHWC.shape[1], RGB_HELD)
    step = max(1, CHUNK_BYTES // images_NHWC[0].nbytes)
    for start in range(0, len(images_NHWC), step):
        digest.update(np.ascontiguousarray(images_NHWC[start : start + step]))
    return _finish(digest, names, window)


def _new_hash(size: Size, holding: Holding) -> Any:
    more = f"{json.dumps(holding.key)}\n" if holding.key else ""
    return hashlib.sha256(f"{size}\n{more}".encode())


def _finish(digest: Any, names: list[str], window: Window | None) -> str:
    digest.update("\0".join(names).encode("utf-8", "surrogateescape"))
    if window:
        digest.update(f"\0window {window}".encode())
    return digest.hexdigest()


def _write_header(file: IO[bytes], count: int, size: Size, holding: Holding) -> None:
    # numpy pads the header, so its length does not depend on the first axis.
    shape = (count, *height_width(size), holding.form.count)
    descr = np.lib.format.dtype_to_descr(holding.dtype)
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _chunks(raw: RawSplit, squarer: Squarer) -> Iterator[tuple[range, list[np.ndarray | BadImage]]]:
    """Yield rows of a split and their squares, in order, decoded by one thread per core.

    Threads suffice: Pillow releases the GIL while it decodes and resizes.
    """
    workers, (height, width) = os.cpu_count() or 1, height_width(squarer.size)
    image_bytes = height * width * squarer.holding.pixel_bytes()
    length = max(8 * workers, min(CHUNK_IMAGES, CHUNK_BYTES // image_bytes))
    array = raw.array() if squarer.holding.form.channels is None else None
    unchanged = array is not None and array.shape[1:] == (height, width, 3)
    with AbandoningPool(workers, "storing") as pool:
        for start in range(0, len(raw), length):
            rows = range(start, min(start + length, len(raw)))
            if array is not None and unchanged:
                yield rows, list(array[rows.start : rows.stop])
            else:
                yield rows, pool.map(squarer, rows)


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
