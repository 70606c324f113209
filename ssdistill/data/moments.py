"""Pixel statistics of images, and warnings about images that use little of their range."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from ssdistill.data.channel_scale import Scale
from ssdistill.data.deep_pixels import Window
from ssdistill.data.form import Form

NARROW = 255 / 10
"""Smallest acceptable range of stored pixels, in levels of 255."""
NARROW_STD = NARROW / 12**0.5
"""Standard deviation of a uniform distribution over that range."""
CLIPPED = 0.01
"""Fraction of pixels beyond the window above which a warning is given."""
MOST_NAMED = 5


class Moments:
    """Per-channel sums over pixels: exact for uint8, in float64 for floats in [0, 1].

    Attributes:
        low_C, high_C: smallest and largest value of each channel.
    """

    def __init__(self, channels: int = 3, dtype: np.dtype | type = np.uint8):
        self.channels, self.is_bytes = channels, np.dtype(dtype) == np.uint8
        self.white = 255 if self.is_bytes else 1
        self.count, self.sums, self.squares = 0, np.zeros(channels), np.zeros(channels)
        self.low_C, self.high_C = np.full(channels, self.white), np.zeros(channels, dtype=int)

    @property
    def low(self) -> int:
        """The smallest value."""
        return self.low_C.min().item()

    @property
    def high(self) -> int:
        """The largest value."""
        return self.high_C.max().item()

    def add(self, images_NHWC: np.ndarray) -> None:
        # Sum over whole rows of pixels: reducing over an inner axis of 3 is many times slower.
        rows = images_NHWC.reshape(-1, images_NHWC.shape[2] * self.channels)
        wide, whole = (np.uint16, np.int64) if self.is_bytes else (np.float64, np.float64)
        for total, values in (
            (self.sums, rows),
            (self.squares, np.square(rows, dtype=wide)),
        ):
            total += values.sum(0, dtype=whole).reshape(-1, self.channels).sum(0)
        self.count += images_NHWC.size // self.channels
        low_C = rows.min(0).reshape(-1, self.channels).min(0)
        high_C = rows.max(0).reshape(-1, self.channels).max(0)
        self.low_C, self.high_C = np.minimum(self.low_C, low_C), np.maximum(self.high_C, high_C)

    def mean_std(self) -> tuple[list[float], list[float]]:
        mean = self.sums / self.count
        variance = np.maximum(self.squares / self.count - mean**2, 0)
        return (mean / self.white).tolist(), (np.sqrt(variance) / self.white).tolist()


def channel_notices(
    moments: Moments,
    form: Form,
    scale: Scale,
    clipped_C: np.ndarray,
    notes: Sequence[str],
    total: int,
) -> list[str]:
    """Return warnings about the pixels of chosen channels, one line each.

    Args:
        clipped_C: fraction of each channel's values beyond its measured window.
    """
    range_C = (moments.high_C - moments.low_C) * (255 / moments.white)
    std_C = np.array(moments.mean_std()[1]) * 255
    named = [form.named(k) for k in range(form.count)]
    constant = [named[k] for k in np.flatnonzero(range_C == 0)]
    narrow_C = (range_C > 0) & ((range_C < NARROW) | (scale.windows is not None) & (
        std_C < NARROW_STD
    ))  # fmt: skip
    narrow = [named[k] for k in np.flatnonzero(narrow_C)]
    clipped = [f"{named[k]} {clipped_C[k]:.1%}" for k in np.flatnonzero(clipped_C > CLIPPED)]
    remedy = "check the files" if scale.windows is None else "set data.window for each channel"
    notices = []
    if constant:
        notices.append(f"{_listed(constant)}: all stored pixels are equal; check data.channels")
    if narrow:
        notices.append(
            f"{_listed(narrow)}: nearly all stored pixels lie within a tenth of the range; {remedy}"
        )
    if clipped:
        notices.append(
            f"values beyond the range of the training images are clipped ({_listed(clipped)}); "
            "set data.window for each channel"
        )
    counted = Counter(notes)
    return notices + [f"{count} of {total} images are {note}" for note, count in counted.items()]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


def pixel_notices(
    moments: Moments, window: Window | None, clipped: float, notes: Sequence[str], total: int
) -> list[str]:
    """Return warnings about the stored pixels, one line each."""
    notices = []
    _, std = moments.mean_std()
    low, high = moments.low, moments.high
    narrow = high - low < NARROW
    if low < high and narrow:
        notices.append(
            f"stored pixels span only {low} to {high}, less than a tenth of the range 0 to 255; "
            f"{_remedy(window)}"
        )
    elif low < high and window and max(std) * 255 < NARROW_STD:
        notices.append(
            f"nearly all stored pixels lie within a tenth of the range 0 to 255; {_remedy(window)}"
        )
    if window and clipped > CLIPPED:
        notices.append(
            f"{clipped:.1%} of the pixels are clipped: they lie beyond data.window="
            f"[{window[0]:g}, {window[1]:g}], the range of the training images; set a wider one"
        )
    counted = Counter(notes)
    return notices + [f"{count} of {total} images {note}" for note, count in counted.items()]


def _remedy(window: Window | None) -> str:
    if window is None:
        return "check the files, or rescale their pixels to 0 to 255"
    return (
        f"data.window is [{window[0]:g}, {window[1]:g}]; set it to the pixel values of black and "
        "white"
    )
