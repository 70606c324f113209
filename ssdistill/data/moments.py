"""Pixel statistics of images, and warnings about images that use little of their range."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from ssdistill.data.deep_pixels import Window

NARROW = 255 / 10
"""Smallest acceptable range of stored pixels, in levels of 255."""
NARROW_STD = NARROW / 12**0.5
"""Standard deviation of a uniform distribution over that range."""
CLIPPED = 0.01
"""Fraction of pixels beyond the window above which a warning is given."""


class Moments:
    """Exact per-channel sums over uint8 pixels.

    Attributes:
        low, high: smallest and largest level.
    """

    def __init__(self) -> None:
        self.count, self.sums, self.squares = 0, np.zeros(3), np.zeros(3)
        self.low, self.high = 255, 0

    def add(self, images_NHWC: np.ndarray) -> None:
        # Sum over whole rows of pixels: reducing over an inner axis of 3 is many times slower.
        rows = images_NHWC.reshape(-1, images_NHWC.shape[2] * 3)
        for total, values in (
            (self.sums, rows),
            (self.squares, np.square(rows, dtype=np.uint16)),
        ):
            total += values.sum(0, dtype=np.int64).reshape(-1, 3).sum(0)
        self.count += images_NHWC.size // 3
        self.low, self.high = min(self.low, int(rows.min())), max(self.high, int(rows.max()))

    def mean_std(self) -> tuple[list[float], list[float]]:
        mean = self.sums / self.count
        variance = np.maximum(self.squares / self.count - mean**2, 0)
        return (mean / 255).tolist(), (np.sqrt(variance) / 255).tolist()


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
    return notices + [f"{count} of {total} images are {note}" for note, count in counted.items()]


def _remedy(window: Window | None) -> str:
    if window is None:
        return "check the files, or rescale their pixels to 0 to 255"
    return (
        f"data.window is [{window[0]:g}, {window[1]:g}]; set it to the pixel values of black and "
        "white"
    )
