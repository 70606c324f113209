"""Write a split's pictures as one array, decoding on all cores."""

import hashlib
import os
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import IO

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from ssdistill.data.decode import BadImage, square
from ssdistill.data.splits import RawSplit
from ssdistill.errors import UserError

CHUNK_BYTES, CHUNK_IMAGES = 8 << 20, 512
SECONDS_WITHOUT_BAR = 2.0


def write_images(file: IO[bytes], raw: RawSplit, size: int, max_bad: float) -> dict:
    """Write a split's squares as one ``.npy``; return what the store's json says of them.

    Bytes are written in order rather than through a memory map: on a full disk a write raises,
    where a store into mapped memory kills the process.
    """
    digest, moments = hashlib.sha256(f"{size}\n".encode()), _Moments()
    names: list[str] = []
    bad: list[tuple[str, str]] = []
    bad_rows: list[int] = []
    _write_header(file, len(raw), size)
    for rows, squares in _with_bar(_chunks(raw, size), len(raw), f"decoding {raw.title}"):
        for row, one in zip(rows, squares, strict=True):
            if isinstance(one, BadImage):
                bad.append((raw.name(row), one.reason))
                bad_rows.append(row)
            else:
                names.append(raw.name(row))
        refuse_bad(raw.title, bad, len(raw), max_bad)
        good = [one for one in squares if not isinstance(one, BadImage)]
        if good:
            images_NHWC = np.stack(good)
            file.write(images_NHWC)
            digest.update(images_NHWC)
            moments.add(images_NHWC)
    if not names:
        raise UserError(f"{raw.title} has no picture that can be read")
    file.seek(0)
    _write_header(file, len(names), size)
    digest.update("\0".join(names).encode("utf-8", "surrogateescape"))
    mean, std = moments.mean_std()
    return {
        "fingerprint": digest.hexdigest(),
        "mean": mean,
        "std": std,
        "bad": bad,
        "bad_rows": bad_rows,
        "names": names,
    }


def _write_header(file: IO[bytes], count: int, size: int) -> None:
    # numpy pads the header so that its length does not depend on the first axis.
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, size, size, 3)}
    np.lib.format.write_array_header_1_0(file, header)


def _chunks(raw: RawSplit, size: int) -> Iterator[tuple[range, list[np.ndarray | BadImage]]]:
    """Rows of a split and their squares, in order, decoded by one thread per core.

    Threads are enough: Pillow lets go of the interpreter while it decodes and resizes.
    """
    workers = os.cpu_count() or 1
    length = max(8 * workers, min(CHUNK_IMAGES, CHUNK_BYTES // (size * size * 3)))
    array = raw.array()
    as_they_are = array is not None and array.shape[1:] == (size, size, 3)

    def read(row: int) -> np.ndarray | BadImage:
        try:
            return square(raw.image(row), size)
        except BadImage as error:
            return error

    with ThreadPoolExecutor(workers) as pool, warnings.catch_warnings():
        # Damaged EXIF, odd palettes: either the picture is read or it is listed as bad.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        for start in range(0, len(raw), length):
            rows = range(start, min(start + length, len(raw)))
            if as_they_are:
                yield rows, list(array[rows.start : rows.stop])
            else:
                yield rows, list(pool.map(read, rows))


def _with_bar(chunks: Iterator, total: int, title: str) -> Iterator:
    """Pass chunks on; a progress bar appears once they have taken two seconds."""
    console = Console(stderr=True)
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True)
    task, began = bar.add_task(escape(title), total=total), time.monotonic()
    try:
        for chunk in chunks:
            yield chunk
            bar.advance(task, len(chunk[0]))
            if console.is_terminal and time.monotonic() - began > SECONDS_WITHOUT_BAR:
                bar.start()
    finally:
        if bar.live.is_started:
            bar.stop()


def refuse_bad(title: str, bad: list[tuple[str, str]], total: int, max_bad: float) -> None:
    """Raises UserError when more than a share ``max_bad`` of ``total`` is in ``bad``."""
    if len(bad) > max_bad * total:
        name, reason = bad[0]
        raise UserError(
            f"{title}: more than {max_bad:.1%} of {total} pictures cannot be read, first {name} "
            f"({reason}); raise data.max_bad to leave them out"
        )


class _Moments:
    """Exact sums over uint8 pixels, channel by channel."""

    def __init__(self) -> None:
        self.count, self.sums, self.squares = 0, np.zeros(3), np.zeros(3)

    def add(self, images_NHWC: np.ndarray) -> None:
        # Whole rows of pixels are summed at once: an inner axis of 3 would be many times slower.
        rows = images_NHWC.reshape(-1, images_NHWC.shape[2] * 3)
        for total, values in (
            (self.sums, rows),
            (self.squares, np.square(rows, dtype=np.uint16)),
        ):
            total += values.sum(0, dtype=np.int64).reshape(-1, 3).sum(0)
        self.count += images_NHWC.size // 3

    def mean_std(self) -> tuple[list[float], list[float]]:
        mean = self.sums / self.count
        variance = np.maximum(self.squares / self.count - mean**2, 0)
        return (mean / 255).tolist(), (np.sqrt(variance) / 255).tolist()
