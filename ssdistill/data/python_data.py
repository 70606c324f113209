"""Images that a program has in memory or reads by itself: arrays, datasets, lists of paths."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ssdistill.data.array_rows import ArrayRows
from ssdistill.data.bad_image import BadImage
from ssdistill.data.decode import read_pixels
from ssdistill.data.file_split import FileSplit
from ssdistill.data.items import image_of, label_of, pixels_of
from ssdistill.data.labels import class_labels
from ssdistill.data.layouts import arrangement
from ssdistill.data.names import Names
from ssdistill.data.progress import with_bar
from ssdistill.data.splits import RawSplit
from ssdistill.errors import UserError, one_line

PIECE = 1 << 24
"""Bytes hashed at a time."""
READ_TWICE = 16
"""Images of a dataset that are read twice, to see whether they are the same."""


@dataclass(frozen=True, eq=False)
class ProgramImages:
    """Images of one split in a program.

    Attributes:
        images: an array or tensor (N, H, W), (N, H, W, C) or (N, C, H, W); a map-style dataset of
            images, pairs of image and label, or dicts; or a list of paths.
        labels: (N,) or (N, K); None to take those of a dataset, if any.
        name: in messages.
    """

    images: Any
    labels: Any = None
    name: str = "data"

    @property
    def is_array(self) -> bool:
        dtype = getattr(self.images, "dtype", None)
        # There are arrays of paths, too; torch's types have no kind.
        return dtype is not None and getattr(dtype, "kind", "u") not in "OUS"

    @property
    def has_labels(self) -> bool:
        return self.labels is not None or (not self.is_array and label_of(self.first) is not None)

    def __len__(self) -> int:
        """Number of images.

        Raises:
            UserError: none, or what has no length.
        """
        try:
            count = len(self.images)
        except (TypeError, ValueError):
            raise UserError(
                f"{self.name}: images must have a length and be read by number, which "
                f"{type(self.images).__name__} cannot; pass a list, an array or a map-style dataset"
            ) from None
        if not count:
            raise UserError(f"{self.name}: no images; pass at least one")
        return count

    @cached_property
    def first(self) -> Any:
        """The first item of a dataset, or the first path.

        Raises:
            UserError: no images, or no dataset.
        """
        len(self)
        try:
            return self.images[0]
        except Exception as error:  # a dataset may raise anything
            raise UserError(
                f"{self.name}: the first image cannot be read ({type(error).__name__}: "
                f"{one_line(error)}); pass a list, an array or a map-style dataset"
            ) from error

    @property
    def size(self) -> int:
        """Shorter side of the first image, in pixels."""
        if self.is_array:
            array = self._array
            found = arrangement(array.shape, array.dtype, "auto", self.name, any_bands=True)
            return min(found.sides)
        if is_path(self.first):
            try:
                return min(read_pixels(Path(self.first), lambda *_: None).shape[:2])
            except BadImage as error:
                raise UserError(f"{self.name}: {self.first}: {error}; remove it") from error
        return min(pixels_of(image_of(self.first), self.name).shape[:2])

    @cached_property
    def _array(self) -> np.ndarray:
        images = self.images
        if not hasattr(images, "detach"):
            return np.asarray(images)
        if str(images.dtype) == "torch.bfloat16":  # numpy has no such type
            images = images.float()
        return images.detach().cpu().numpy()

    def split(self, title: str, row_M: np.ndarray | None, *, any_bands: bool) -> RawSplit:
        """The images of some rows, all if None.

        Raises:
            UserError: no images.
        """
        if self.is_array:
            array = self._array
            arranged = arrangement(array.shape, array.dtype, "auto", self.name, any_bands=any_bands)
            count = len(array)
            rows = np.arange(count) if row_M is None else row_M
            text = f"{self.identity} {hashlib.sha256(rows.tobytes()).hexdigest()}"
            labels = None if self.labels is None else lambda: np.asarray(self.labels)
            return ArrayRows(title, text, lambda: array, count, arranged, rows, labels)
        if is_path(self.first):
            return _of_paths(title, self.images, self.labels, row_M)
        return DatasetSplit(title, self, row_M)

    @cached_property
    def identity(self) -> str:
        """sha256 (hex) of all pixels; every image of a dataset is read for it, once.

        Raises:
            UserError: a dataset that returns another image each time.
        """
        sha256 = hashlib.sha256()
        if self.is_array:
            array = self._array
            sha256.update(f"{array.dtype.str} {array.shape}".encode())
            rows = max(1, PIECE // max(1, array[:1].nbytes))
            for start in range(0, len(array), rows):
                sha256.update(np.ascontiguousarray(array[start : start + rows]).tobytes())
            return sha256.hexdigest()
        self._require_same()
        count = len(self)
        for (i,), *_ in with_bar((((i,),) for i in range(count)), count, f"reading {self.name}"):
            try:
                _hash(self.item(i), sha256)
            except BadImage:
                sha256.update(b"unreadable")
        return sha256.hexdigest()

    def item(self, i: int) -> np.ndarray:
        """Return the image (H, W, C) of an item of a dataset.

        Raises:
            BadImage: it cannot be read, or has not the first one's kind of numbers.
        """
        try:
            pixels = pixels_of(image_of(self.images[i]), self.name)
        except UserError as error:
            raise BadImage(str(error)) from error
        except Exception as error:  # a dataset may raise anything
            raise BadImage(f"{type(error).__name__}: {one_line(error)}") from error
        if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
            raise BadImage("NaN or infinite pixels")
        if (pixels.dtype == np.uint8) != self.are_bytes:
            other = "more than 8 bits" if self.are_bytes else "8 bits"
            raise BadImage(f"{pixels.dtype}, {other}, unlike the first image")
        return pixels

    @cached_property
    def are_bytes(self) -> bool:
        """Whether the first image of a dataset, and so every one, has 8 bits."""
        return pixels_of(image_of(self.first), self.name).dtype == np.uint8

    def _require_same(self) -> None:
        for i in range(min(READ_TWICE, len(self))):
            try:
                first, again = self.item(i), self.item(i)
            except BadImage:
                continue
            if first.shape != again.shape or not np.array_equal(first, again):
                raise UserError(
                    f"{self.name}: the dataset returns another image each time it is read; remove "
                    "its random transforms: views are made by ssdistill"
                )


class DatasetSplit(RawSplit):
    """Images of a map-style dataset, read by number.

    Args:
        images: the dataset.
        row_M: (M,) rows of the images; None for all.
    """

    def __init__(self, title: str, images: ProgramImages, row_M: np.ndarray | None = None):
        self.title, self._images, self._row_M = title, images, row_M

    def __len__(self) -> int:
        return len(self._images) if self._row_M is None else len(self._row_M)

    def _row(self, i: int) -> int:
        return int(i) if self._row_M is None else int(self._row_M[i])

    def image(self, i: int) -> np.ndarray:
        pixels = self.bands(i)
        if pixels.dtype != np.uint8:
            return pixels
        if pixels.shape[2] not in (1, 3):
            raise BadImage(f"{pixels.shape[2]} channels; set data.channels")
        return np.broadcast_to(pixels, (*pixels.shape[:2], 3))

    def bands(self, i: int) -> np.ndarray:
        return self._images.item(self._row(i))

    def auto_window(self, low: float, high: float) -> tuple[float, float]:
        """Return [0, 1] for fractions, the range of values for others."""
        return (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)

    def deep_rows(self) -> Sequence[int]:
        return [] if self._images.are_bytes else range(len(self))

    def name(self, i: int) -> str:
        return f"{self._row(i):06d}"

    def identity(self) -> str:
        rows = b"" if self._row_M is None else self._row_M.tobytes()
        return hashlib.sha256(self._images.identity.encode() + rows).hexdigest()

    def labels(self) -> np.ndarray:
        labels = self._images.labels
        if labels is None:
            labels = getattr(self._images.images, "targets", None)
        if labels is None:
            items = self._images.images
            labels = [label_of(items[i]) for i in range(len(items))]
        name = f"{self.title}: its labels"
        label_N = class_labels(labels, name, len(self._images))
        return label_N if self._row_M is None else label_N[self._row_M]


def _of_paths(title: str, paths: Any, labels: Any, row_M: np.ndarray | None) -> RawSplit:
    rows = range(len(paths)) if row_M is None else row_M.tolist()
    names = Names.of(os.path.abspath(os.fspath(paths[i])) for i in rows)
    class_N, classes = None, ()
    if labels is not None:
        label_N = class_labels(labels, f"{title}: its labels", len(paths))
        class_N = label_N[list(rows)]
        if label_N.ndim == 1:
            classes = tuple(map(str, range(int(label_N.max()) + 1)))
    return FileSplit(title, [(Path("/"), names)], class_N, classes)


def is_path(item: Any) -> bool:
    """Whether an item of images is the path of one."""
    return isinstance(item, str | os.PathLike)


def _hash(pixels: np.ndarray, sha256: Any) -> None:
    sha256.update(f"{pixels.dtype.str} {pixels.shape}".encode())
    sha256.update(np.ascontiguousarray(pixels).tobytes())
