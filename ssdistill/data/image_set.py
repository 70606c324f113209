"""The readable images of a split: the interface of stored squares and of originals."""

from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ssdistill.data.deep_pixels import Window
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
        channel_names: names of the C channels if the config has them, else None.
        mean, std: per channel, in units of [0, 1]. The std of a constant channel is 1/255 rather
            than 0, so that it can be a divisor.
        window: values that map to black and white; None if all images have 8 bits.
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
    mean: tuple[float, ...]
    std: tuple[float, ...]
    window: Window | None
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

    @cached_property
    def resident(self) -> np.ndarray:
        """:attr:`stored` in memory: one copy, shared by all random readers."""
        return np.array(self.stored)

    @cached_property
    def labels(self) -> np.ndarray:
        """(N,) int64, read from the source on first use; UserError if there are none."""
        labels = self.source.split(self.split).labels()
        if len(labels) != len(self) + len(self.bad):
            raise UserError(
                f"{self.place}: the images have changed since they were opened; run the command "
                "again"
            )
        return np.delete(labels, self.bad_rows)

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names by label; None if the source has none, or finds them by reading the labels."""
        return self.source.split(self.split).class_names
