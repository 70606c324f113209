"""Images of one array, read row by row: memory-mapped, or in an array file such as HDF5."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from ssdistill.data.array_split import ArraySplit
from ssdistill.data.bad_image import BadImage
from ssdistill.data.labels import class_labels
from ssdistill.data.layouts import Arrangement


class ArrayRows(ArraySplit):
    """Rows of an array of images in any layout, read on demand.

    Args:
        images: returns the array, or an object that has a dtype and is indexed like one.
        count: number of images in the array.
        arranged: the order of its axes.
        row_M: (M,) rows of the images in the split; None for all.
        labels: returns (N,) labels of all images of the array; None for unlabeled images.
        classes: returns the class names; None if only the labels tell them.
    """

    def __init__(
        self,
        title: str,
        identity: str,
        images: Callable[[], Any],
        count: int,
        arranged: Arrangement,
        row_M: np.ndarray | None = None,
        labels: Callable[[], np.ndarray] | None = None,
        classes: Callable[[], Any] | None = None,
    ):
        super().__init__(title, identity, images, labels, classes)
        self._count, self._arranged, self._row_M = count, arranged, row_M

    @cached_property
    def _images(self) -> Any:
        return self._load()

    def __len__(self) -> int:
        return self._count if self._row_M is None else len(self._row_M)

    def array(self) -> np.ndarray | None:
        whole = self._row_M is None and isinstance(self._images, np.ndarray)
        return _rgb(self._arranged(self._images)) if whole and self._is_bytes else None

    @property
    def _is_bytes(self) -> bool:
        return self._images.dtype == np.uint8

    def image(self, i: int) -> np.ndarray:
        pixels = self._pixels(i)
        return _rgb(pixels[None])[0] if self._is_bytes else pixels

    def bands(self, i: int) -> np.ndarray:
        pixels = self._pixels(i)
        return pixels if pixels.ndim == 3 else pixels[..., None]

    def _pixels(self, i: int) -> np.ndarray:
        """Return an image as (H, W) or (H, W, C)."""
        row = self._row(i)
        try:
            pixels = self._arranged(np.asarray(self._images[row : row + 1]))[0]
        except (ValueError, RuntimeError, KeyError) as error:  # h5py, if the file is damaged
            raise BadImage(f"cannot be read ({type(error).__name__})") from error
        if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
            raise BadImage("NaN or infinite pixels")
        return pixels

    def deep_rows(self) -> Sequence[int]:
        return range(0 if self._is_bytes else len(self))

    def name(self, i: int) -> str:
        return f"{self._row(i):06d}"

    def _row(self, i: int) -> int:
        return i if self._row_M is None else int(self._row_M[i])

    def labels(self) -> np.ndarray:
        if self._load_labels is None or self._row_M is None:
            return super().labels()
        labels_N = class_labels(self._load_labels(), f"{self.title}: its labels", self._count)
        return labels_N[self._row_M]


def _rgb(images: np.ndarray) -> np.ndarray:
    """Return uint8 images as (B, H, W, 3) without a copy."""
    if images.ndim == 4:
        return images
    return np.broadcast_to(images[..., None], (*images.shape, 3))
