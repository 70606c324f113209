"""Choose the pixel values that map to black and white, for more than 8 bits per channel."""

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal, cast

import numpy as np

from ssdistill.data.bad_image import BadImage
from ssdistill.data.deep_pixels import (
    Window,
    around,
    full_range,
    has_usable_width,
    visible_range,
)
from ssdistill.data.hanging_reads import AbandoningPool
from ssdistill.data.retry import retried
from ssdistill.data.splits import RawSplit, Source
from ssdistill.errors import UserError, shown
from ssdistill.files import write_atomically

DEEP_TYPES = ("int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float64")
WindowSetting = Window | tuple[Window, ...] | Literal["auto", "full"]
"""``data.window``; a list of windows has one for each of ``data.channels``."""


def window_of(
    source: Source,
    split: str,
    setting: WindowSetting,
    root: Path,
) -> Window | None:
    """Return the window of a split, or None if all its images have 8 bits.

    ``auto`` uses the smallest and largest value of the training images for both splits, and
    caches them below ``root``, by the identity of the images.

    Raises:
        UserError: ``full`` for images of several types, a range too wide or narrow for float64,
            or no readable image.
    """
    raw = source.split(split)
    if not _has_deep(source, raw, split, root):
        return None
    if setting == "full":
        return _full_window(raw)
    if setting != "auto":
        return cast("Window", setting)  # a list of windows requires data.channels
    reference, name = raw, split
    if split != "train" and source.has_test:
        train = source.split("train")
        if _has_deep(source, train, "train", root):
            reference, name = train, "train"
    values = _cached(_path(source, reference, name, root), lambda: _measured(reference))
    return _auto_window(reference, values)


def cached_windows(source: Source, split: str, setting: WindowSetting, root: Path) -> list[Window]:
    """Return all windows that :func:`window_of` could return without decoding an image."""
    if setting == "full":
        return sorted({full_range(np.dtype(name)) for name in DEEP_TYPES})
    if setting != "auto":
        return [cast("Window", setting)]
    windows = []
    for name in dict.fromkeys(("train", split)):
        raw = source.split(name)
        if values := _read(_path(source, raw, name, root)):
            windows.append(_auto_window(raw, values))
    return windows


def _auto_window(reference: RawSplit, values: dict[str, float]) -> Window:
    """Return the default window of a split, from its smallest and largest value."""
    low, high = reference.auto_window(values["low"], values["high"])
    if low >= high:
        return around(low)
    if not has_usable_width((low, high)):
        raise UserError(
            f"{reference.title}: pixels range from {low:g} to {high:g}, too wide or too narrow for "
            "float64; set data.window=[low, high]"
        )
    return low, high


def _has_deep(source: Source, raw: RawSplit, split: str, root: Path) -> bool:
    return _path(source, raw, split, root).exists() or bool(raw.deep_rows())


def _measured(raw: RawSplit) -> dict[str, float]:
    """Return the smallest and largest value of all readable deep images."""

    reasons: dict[int, str] = {}

    def extremes(row: int) -> Window:
        try:
            return visible_range(_image(raw, row))
        except BadImage as error:
            reasons[row] = error.reason
            return np.inf, -np.inf

    with AbandoningPool(os.cpu_count() or 1, "measuring") as pool:
        ends = pool.map(extremes, raw.deep_rows())
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    if low > high:
        # Fully transparent images are readable, but have no visible values.
        first = [f" (first: {shown(raw.name(row))}: {reasons[row]})" for row in sorted(reasons)]
        raise UserError(
            f"{shown(raw.title)}: no image of more than 8 bits can be read"
            f"{''.join(first[:1])}; replace or remove them"
        )
    return {"low": low, "high": high}


def _image(raw: RawSplit, row: int) -> np.ndarray:
    return retried(raw.image, row, raw.name(row), raw.reading.seconds)


def _full_window(raw: RawSplit) -> Window:
    """Return the range of the pixel type, which all deep images must share."""
    ranges = set()
    for row in raw.deep_rows():
        with suppress(BadImage):
            ranges.add(full_range(_image(raw, row).dtype))
    if len(ranges) == 1:
        return ranges.pop()
    reason = "have several pixel types" if ranges else "of more than 8 bits are unreadable"
    raise UserError(
        f"data.window=full: the images of {raw.title} {reason}; set data.window=auto or "
        "data.window=[low, high]"
    )


def _path(source: Source, raw: RawSplit, split: str, root: Path) -> Path:
    parts = [source.kind, source.settings, split, raw.identity()]
    key = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
    return root / f"{source.kind}-{split}-{key[:12]}.values.json"


def _read(path: Path) -> dict[str, float] | None:
    """Read the values cached at ``path``; None if they are missing or damaged."""
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        if path.is_file():
            values = json.loads(path.read_text())
            return {end: float(values[end]) for end in ("low", "high")}
    return None


def _cached(path: Path, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Read the values cached at ``path``, or measure them and try to cache them."""
    if (cached := _read(path)) is not None:
        return cached
    values = measure()
    with suppress(OSError, UserError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(values) + "\n")
    return values
