"""A split of images that are one array."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from ssdistill.data.bad_image import BadImage
from ssdistill.data.deep_pixels import Window
from ssdistill.data.labels import class_labels
from ssdistill.data.splits import RawSplit
from ssdistill.errors import UserError


class ArraySplit(RawSplit):
    """Images of one array, loaded on first use.

    Args:
        images: returns (N, H, W, 3) or (N, H, W): uint8, or other numbers for a window; or, if
            ``data.channels`` is set, (N, H, W, C).
        labels: returns (N,) integers, or (N, K) of 0 and 1; None for unlabeled images.
        classes: returns the class names; None if there are none.
    """

    def __init__(
        self,
        title: str,
        identity: str,
        images: Callable[[], np.ndarray],
        labels: Callable[[], np.ndarray] | None = None,
        classes: Callable[[], Any] | None = None,
    ):
        self.title, self._identity = title, identity
        self._load, self._load_labels, self._load_classes = images, labels, classes

    @cached_property
    def _loaded(self) -> np.ndarray:
        return self._load()

    @cached_property
    def _images(self) -> np.ndarray:
        """(N, H, W, 3) uint8; of other types also (N, H, W)."""
        images = self._loaded
        if images.ndim == 3 and images.dtype == np.uint8:
            return np.broadcast_to(images[..., None], (*images.shape, 3))
        return images

    def __len__(self) -> int:
        return len(self._images)

    def array(self) -> np.ndarray | None:
        return self._images if self._images.dtype == np.uint8 else None

    def image(self, i: int) -> np.ndarray:
        image = self._images[i]
        if image.dtype.kind == "f" and not np.isfinite(image).all():
            raise BadImage("NaN or infinite pixels")
        return image

    def bands(self, i: int) -> np.ndarray:
        bands = self.image(i) if self._loaded.ndim == 4 else self._loaded[i][..., None]
        if bands.dtype.kind == "f" and not np.isfinite(bands).all():
            raise BadImage("NaN or infinite pixels")
        return bands

    def deep_rows(self) -> Sequence[int]:
        return [] if self._images.dtype == np.uint8 else list(range(len(self)))

    def auto_window(self, low: float, high: float) -> Window:
        """Return [0, 1] for floats and booleans, the range of values for integers."""
        if self._images.dtype.kind == "b":
            return 0.0, 1.0
        if self._images.dtype.kind != "f":
            return low, high
        if low < 0 or high > 1:
            raise UserError(
                f"{self.title}: {self._images.dtype} pixels range from {low:g} to {high:g}, beyond "
                f"[0, 1]; set data.window=[{low:g}, {high:g}], or to the values of black and "
                "white"
            )
        return 0.0, 1.0

    def name(self, i: int) -> str:
        return f"{i:06d}"

    def identity(self) -> str:
        return self._identity

    def labels(self) -> np.ndarray:
        if self._load_labels is None:
            return super().labels()
        return class_labels(self._load_labels(), f"{self.title}: its labels")

    @property
    def class_names(self) -> tuple[str, ...] | None:
        if self._load_classes is None:
            return None
        return tuple(str(name) for name in self._load_classes())
