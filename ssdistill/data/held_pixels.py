"""Read images as RGB or as selected channels, resized or at full size."""

from dataclasses import dataclass
from functools import partial
from threading import Lock

import numpy as np

from ssdistill.data.bad_image import BadImage
from ssdistill.data.channel_scale import Scale, chosen, clipped_fraction, scaled
from ssdistill.data.deep_pixels import Window, full_range, render, split_alpha
from ssdistill.data.form import RGB, Form
from ssdistill.data.resizing import fitted
from ssdistill.data.retry import retried
from ssdistill.data.splits import RawSplit
from ssdistill.settings import Size


@dataclass(frozen=True)
class Holding:
    """How the pixels of images are represented.

    Attributes:
        form: channels, shape and names.
        scale: of selected channels; None for RGB.
        window: for RGB, the values that map to black and white, for images of more than 8 bits.
    """

    form: Form = RGB
    scale: Scale | None = None
    window: Window | None = None

    @property
    def dtype(self) -> np.dtype:
        """Data type of the final values."""
        return np.dtype(np.uint8) if self.scale is None else self.scale.held

    @property
    def windows(self) -> tuple[Window, ...] | None:
        """The window of each channel; None if all images have 8 bits."""
        return self.scale.windows if self.scale else self.window and (self.window,) * 3

    @property
    def key(self) -> list:
        """Part of keys and fingerprints; empty by default."""
        return [*self.form.key, *(self.scale.key if self.scale else [])]

    def pixel_bytes(self) -> int:
        """Return the number of bytes per pixel."""
        return self.form.count * self.dtype.itemsize

    def shown(self, pixels: np.ndarray) -> np.ndarray:
        """Convert the result of :meth:`read` to its final values, (H, W, C)."""
        if self.scale is not None:
            return scaled(pixels, self.scale)
        if pixels.dtype == np.uint8:
            return pixels
        return render(pixels, self.window or full_range(pixels.dtype))

    def read(self, raw: RawSplit, row: int) -> np.ndarray:
        """Return the values of an image in the data type of the file.

        Raises:
            BadImage: the image cannot be read, or lacks a channel.
        """
        if self.form.channels is None:
            return raw.image(row)
        return chosen(raw.bands(row), self.form.channels)

    def whole(self, raw: RawSplit, row: int) -> np.ndarray:
        """Return an image with its final values, (H, W, C) in its original size."""
        return self.shown(self.retrieved(raw, row))

    def retrieved(self, raw: RawSplit, row: int) -> np.ndarray:
        """Return the result of :meth:`read`, in several attempts if the system fails."""
        return retried(partial(self.read, raw), row, raw.name(row), raw.reading.seconds)

    def clipped_fraction(self, pixels: np.ndarray) -> np.ndarray | None:
        """Return the fraction of each channel beyond its window; None without a window."""
        if self.scale is not None:
            return clipped_fraction(pixels, self.scale) if self.scale.windows else None
        if pixels.dtype == np.uint8:
            return None
        low, high = self.window or full_range(pixels.dtype)
        color, _ = split_alpha(pixels)
        return np.array([((color < low) | (color > high)).mean()])


class Squarer:
    """Read images of a split in one size.

    Attributes:
        clipped_C: fraction of the values of deep images beyond the window: of each selected
            channel, or of all colors together.
    """

    def __init__(self, raw: RawSplit, size: Size, holding: Holding):
        self.raw, self.size, self.holding = raw, size, holding
        self._beyond, self._count = np.zeros(holding.form.count if holding.scale else 1), 0
        self._lock = Lock()

    def __call__(self, row: int) -> np.ndarray | BadImage:
        try:
            pixels = self.holding.retrieved(self.raw, row)
            held_HWC = self.holding.shown(pixels)
        except BadImage as error:
            return error
        if (beyond_C := self.holding.clipped_fraction(pixels)) is not None:
            with self._lock:
                self._beyond += beyond_C
                self._count += 1
        return fitted(held_HWC, self.size, self.holding.form.resize)

    @property
    def clipped_C(self) -> np.ndarray:
        return self._beyond / max(1, self._count)
