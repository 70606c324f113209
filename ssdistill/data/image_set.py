"""The images of a split as everything after them sees them, however they are held."""

from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ssdistill.data.deep_pixels import Window
from ssdistill.data.displaying import displayed
from ssdistill.data.form import RGB, Form
from ssdistill.data.splits import Source
from ssdistill.errors import UserError


class ImageSet(ABC):
    """One split's readable images.

    What belongs here is what is known of images without their labels, which ``evaluate`` alone
    reads, from the source.

    Attributes:
        images: (N, H, W, C) of the size that networks take: an array, or what can be indexed like
            one; uint8, or float32 in [0, 1] of images with more than 8 bits whose channels were
            chosen.
        bad: (name, reason) of every image left out.
        fingerprint: sha256 (hex) of the images; labels are no part of it.
        mean, std: per channel, in units of [0, 1]. A channel of one value has the std of one
            level of 255, by which it can be divided.
        weights: (N,) float64, by which images are drawn in training; None where all count alike.
        window: values that become black and white; None where all images have 8 bits, and of
            chosen channels.
        windows: the same of each channel.
        channel_names: of the C channels where the config names them; None otherwise.
        form: which channels, and how they are shaped and shown.
        notices: what a user should know of the pixels, one line each.
        source, split: where it came from.
        folder: of what is kept of them on disk.
        place: where the images are, for messages.
    """

    images: Any
    bad: list[tuple[str, str]]
    bad_rows: list[int]
    fingerprint: str
    channel_names: tuple[str, ...] | None = None
    form: Form = RGB
    weights: np.ndarray | None = None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    window: Window | None
    windows: tuple[Window, ...] | None = None
    notices: list[str]
    source: Source
    split: str
    folder: Path

    @property
    @abstractmethod
    def place(self) -> str: ...

    def __len__(self) -> int:
        return len(self.images)

    @property
    def stored(self) -> Any:
        """What views are cut from, (N, H, W, C): :attr:`images` or, around them, larger ones."""
        return self.images

    def displayed(self, images_NHWC: Any) -> np.ndarray:
        """Return images as people see them, see :func:`ssdistill.data.displaying.displayed`."""
        return displayed(np.asarray(images_NHWC), self.form, self.mean, self.std)

    @cached_property
    def resident(self) -> np.ndarray:
        """:attr:`stored` in memory: one copy for all who read it at random."""
        return np.array(self.stored)

    @cached_property
    def labels(self) -> np.ndarray:
        """(N,) int64 or (N, K) bool, as :meth:`RawSplit.labels`; read from the source on first use.

        Raises:
            UserError: it has none, or the images have changed.
        """
        labels = self.source.split(self.split).labels()
        if len(labels) != len(self) + len(self.bad):
            raise UserError(
                f"the images of {self.place} have changed since it was opened; run the command "
                "again"
            )
        return np.delete(labels, self.bad_rows, axis=0)

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names by label, if the source has them apart from the labels, or has read the labels."""
        return self.source.split(self.split).class_names
