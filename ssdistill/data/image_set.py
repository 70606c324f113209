"""The readable images of a split: the interface of stored squares and of originals."""

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

    Only ``evaluate`` reads labels, from the source; everything else here is label-free.

    Attributes:
        images: (N, H, W, C) of the size that networks take: an array, or an object indexed like
            one. uint8, or float32 in [0, 1] of images with more than 8 bits whose channels were
            chosen.
        bad: (name, reason) of every skipped image.
        bad_rows: their rows in the source, ascending.
        fingerprint: sha256 (hex) of the images, without their labels.
        mean, std: per channel, in units of [0, 1]. The std of a constant channel is 1/255 rather
            than 0, so that it can be a divisor.
        weights: (N,) float64 with which images are drawn in training; None if all are equal.
        window: values that map to black and white; None if all images have 8 bits, and for chosen
            channels.
        windows: the window of each channel; None if all images have 8 bits.
        channel_names: names of the C channels if the config has them, else None.
        form: channels, shape and display of the images.
        notices: warnings about the pixels, one line each.
        source, split: the origin of the images.
        folder: of the store or index on disk.
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
        """(N, H, W, C) images to crop views from: :attr:`images`, or larger ones around them."""
        return self.images

    def displayed(self, images_NHWC: Any) -> np.ndarray:
        """Return images for display, see :func:`ssdistill.data.displaying.displayed`."""
        return displayed(np.asarray(images_NHWC), self.form, self.mean, self.std)

    @cached_property
    def resident(self) -> np.ndarray:
        """:attr:`stored` in memory: one copy, shared by all random readers."""
        return np.array(self.stored)

    @cached_property
    def labels(self) -> np.ndarray:
        """(N,) int64 or (N, K) bool, as :meth:`RawSplit.labels`; read from the source on first use.

        Raises:
            UserError: there are none, or the images have changed.
        """
        labels = self.source.split(self.split).labels()
        if len(labels) != len(self) + len(self.bad):
            raise UserError(
                f"{self.place}: the images have changed since they were opened; run the command "
                "again"
            )
        return np.delete(labels, self.bad_rows, axis=0)

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names by label; None if the source has none, or finds them by reading the labels."""
        return self.source.split(self.split).class_names
