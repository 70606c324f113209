"""Data type and range of images with selected channels, determined by the training images."""

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from ssdistill.data.bad_image import BadImage
from ssdistill.data.deep_pixels import Window, around, full_range, has_usable_width
from ssdistill.data.form import Form
from ssdistill.data.hanging_reads import AbandoningPool
from ssdistill.data.progress import with_bar
from ssdistill.data.retry import retried
from ssdistill.data.splits import RawSplit, Source
from ssdistill.data.window import WindowSetting
from ssdistill.errors import UserError, shown
from ssdistill.files import write_atomically

log = logging.getLogger(__name__)

TRIED = 64
"""Maximum number of images to search for one that has all channels."""
PIECE = 64
ENDS = ("low", "high")
APART = 0.5
"""Gap between an end of the range and all other values, as a fraction of it, that is named."""


@dataclass(frozen=True)
class Scale:
    """How the values of all images of a source are scaled.

    Attributes:
        dtype: of the files; images of another type are unreadable.
        windows: for each channel, the values that map to 0 and 1; None for uint8, which is not
            scaled.
    """

    dtype: np.dtype
    windows: tuple[Window, ...] | None

    @property
    def held(self) -> np.dtype:
        """Data type of scaled images: uint8 or float32."""
        return np.dtype(np.uint8 if self.windows is None else np.float32)

    @property
    def key(self) -> list[Any]:
        """Part of keys and fingerprints."""
        if self.windows is None:
            return []
        return [["values", self.dtype.name, [list(window) for window in self.windows]]]


def scale_of(source: Source, form: Form, setting: WindowSetting, root: Path) -> Scale:
    """Return the scale of the images of a source; measure it if it is not cached.

    The first readable training image that has all channels determines the type. Unless it is
    uint8, ``auto`` decodes all training images once to measure the range of each channel. Results
    are cached below ``root``, by the identity of the images.

    Raises:
        UserError: images lack one of the channels, the range of values is unusable, or no image is
            readable.
    """
    raw = source.split("train")
    path = _path(source, raw, form, root)
    cached = _load(path, form.count) or {}
    if "dtype" not in cached:
        cached = {"dtype": _first_type(raw, form).name}
        _save(path, cached)
    dtype = np.dtype(cached["dtype"])
    if dtype != np.uint8 and setting == "auto" and "low" not in cached:
        cached |= _measured(raw, form, dtype)
        _save(path, cached)
    return _scale(raw, form, dtype, cached, setting)


def known_scale(source: Source, form: Form, setting: WindowSetting, root: Path) -> Scale | None:
    """Return the scale if it is known without decoding an image; else None."""
    raw = source.split("train")
    cached = _load(_path(source, raw, form, root), form.count) or {}
    if "dtype" not in cached:
        return None
    dtype = np.dtype(cached["dtype"])
    if dtype != np.uint8 and setting == "auto" and "low" not in cached:
        return None
    return _scale(raw, form, dtype, cached, setting)


def chosen(bands_HWC: np.ndarray, channels: Sequence[int]) -> np.ndarray:
    """Return the selected bands of an image; BadImage if it has too few."""
    count = bands_HWC.shape[2]
    if max(channels) >= count:
        raise BadImage(_too_few(count))
    return bands_HWC if tuple(channels) == tuple(range(count)) else bands_HWC[..., list(channels)]


def scaled(bands_HWC: np.ndarray, scale: Scale) -> np.ndarray:
    """Return selected channels as uint8, or as float32 in [0, 1], mapped through the windows.

    Raises:
        BadImage: values are of another type than those of the first training image.
    """
    if bands_HWC.dtype != scale.dtype:
        raise BadImage(f"{bands_HWC.dtype} values, but the first training image has {scale.dtype}")
    if scale.windows is None:
        return bands_HWC
    held_HWC = np.empty(bands_HWC.shape, dtype=np.float32)
    for k, (low, high) in enumerate(scale.windows):
        # Integers of 32 bits and differences of large floats need 64.
        values_HW = bands_HWC[..., k].astype(np.float64)
        values_HW -= low
        values_HW /= high - low
        held_HWC[..., k] = values_HW.clip(0, 1, out=values_HW)
    return held_HWC


def clipped_fraction(bands_HWC: np.ndarray, scale: Scale) -> np.ndarray:
    """Return the fraction of each channel's values that its window clips, (C,)."""
    assert scale.windows is not None
    low_C, high_C = np.array(scale.windows).T
    return ((bands_HWC < low_C) | (bands_HWC > high_C)).mean(axis=(0, 1))


def _too_few(count: int) -> str:
    return "has 1 channel, numbered 0" if count == 1 else (
        f"has {count} channels, numbered 0 to {count - 1}"
    )  # fmt: skip


def _scale(
    raw: RawSplit, form: Form, dtype: np.dtype, cached: dict[str, Any], setting: WindowSetting
) -> Scale:
    if dtype == np.uint8:
        return Scale(dtype, None)
    assert form.channels is not None
    if setting == "full":
        windows = [full_range(dtype)] * len(form.channels)
    elif setting == "auto":
        pairs = zip(cached["low"], cached["high"], strict=True)
        windows = [_window_of(raw, form, k, low, high) for k, (low, high) in enumerate(pairs)]
    elif isinstance(setting[0], tuple):
        windows = list(cast("tuple[Window, ...]", setting))
    else:
        windows = [cast("Window", setting)] * len(form.channels)
    return Scale(dtype, tuple((float(low), float(high)) for low, high in windows))


def _window_of(raw: RawSplit, form: Form, k: int, low: float, high: float) -> Window:
    if low >= high:
        return around(low)
    if not has_usable_width((low, high)):
        raise UserError(
            f"{shown(raw.title)}: {form.named(k)} has values from {low:g} to {high:g}, which span "
            "too wide or too narrow a range for float64; set data.window to a list of [low, high], "
            "one for each channel"
        )
    return low, high


def _first_type(raw: RawSplit, form: Form) -> np.dtype:
    """Return the data type of the first readable training image that has all channels."""
    unreadable, few = list[str](), list[str]()
    for row in range(len(raw)):
        try:
            bands_HWC = _bands(raw, row)
        except BadImage as error:
            unreadable.append(f"first {shown(raw.name(row))} ({error.reason})")
            continue
        try:
            return chosen(bands_HWC, form.channels or ()).dtype
        except BadImage as error:
            few.append(f"{shown(raw.name(row))} {error.reason}")
        if len(few) == TRIED:
            break
    if few:
        raise UserError(f"{form.setting}: {few[0]}; choose among them, or set null for RGB")
    reason = f", {unreadable[0]}" if unreadable else ""
    raise UserError(f"{shown(raw.title)} has no readable image{reason}; replace them")


def _measured(raw: RawSplit, form: Form, dtype: np.dtype) -> dict[str, list[float]]:
    """Return the smallest and largest value of each channel over all readable images."""
    channels = form.channels
    assert channels is not None

    def extremes(row: int) -> np.ndarray | None:
        try:
            bands_HWC = chosen(_bands(raw, row), channels)
        except BadImage:  # reported when the image is stored
            return None
        return _ends(bands_HWC.reshape(-1, len(channels))) if bands_HWC.dtype == dtype else None

    def pieces() -> Iterator[tuple[range, list[np.ndarray | None]]]:
        with AbandoningPool(os.cpu_count() or 1, "measuring") as pool:
            for start in range(0, len(raw), PIECE):
                rows = range(start, min(start + PIECE, len(raw)))
                yield rows, pool.map(extremes, rows)

    ends_4C = None
    for _, found in with_bar(pieces(), len(raw), f"measuring {raw.title}"):
        for each_4C in found:
            if each_4C is not None:
                both = each_4C if ends_4C is None else np.concatenate([ends_4C, each_4C])
                ends_4C = _ends(both)
    if ends_4C is None:
        raise UserError(f"{shown(raw.title)}: no {dtype} image can be read; replace them")
    _warn_of_fill(raw, form, ends_4C)
    return {"low": ends_4C[0].tolist(), "high": ends_4C[3].tolist()}


def _bands(raw: RawSplit, row: int) -> np.ndarray:
    return retried(raw.bands, row, raw.name(row), raw.reading.seconds)


def _ends(values_NC: np.ndarray) -> np.ndarray:
    """Return the two smallest and the two largest different values of each channel, (4, C)."""
    ends_4C = np.empty((4, values_NC.shape[1]))
    for k, values_N in enumerate(values_NC.T):
        low, high = values_N.min(), values_N.max()
        second = values_N.min(where=values_N > low, initial=high)
        last = values_N.max(where=values_N < high, initial=low)
        ends_4C[:, k] = low, second, last, high
    return ends_4C


def _warn_of_fill(raw: RawSplit, form: Form, ends_4C: np.ndarray) -> None:
    """Name values far from all others, such as -9999 for missing pixels, that spoil a range."""
    for k, (low, second, last, high) in enumerate(ends_4C.T):
        for value, least, most in ((low, second, high), (high, low, last)):
            gap = least - low if value == low else high - most
            if least < most and gap > APART * (high - low):
                log.warning(
                    "%s: %s: %g is far from all other values, %g to %g; if it marks missing "
                    "pixels, set data.window to a list of [low, high], one for each channel",
                    *(raw.title, form.named(k), value, least, most),
                )


def _path(source: Source, raw: RawSplit, form: Form, root: Path) -> Path:
    parts = [source.kind, source.settings, "train", raw.identity(), list(form.channels or ())]
    key = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
    return Path(root) / f"{source.kind}-train-{key[:12]}.channels.json"


def _load(path: Path, count: int) -> dict[str, Any] | None:
    """Read cached results from ``path``; None if there are none, or they are damaged."""
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        if path.is_file():
            content = json.loads(path.read_text())
            cached: dict[str, Any] = {"dtype": np.dtype(content["dtype"]).name}
            ends = [[float(value) for value in content[end]] for end in ENDS if end in content]
            if all(len(end_C) == count for end_C in ends) and len(ends) in (0, 2):
                return cached | dict(zip(ENDS, ends, strict=False))
    return None


def _save(path: Path, cached: dict[str, Any]) -> None:
    with suppress(OSError, UserError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(cached) + "\n")
