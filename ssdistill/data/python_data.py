"""Images that a program has in memory or reads by itself: arrays, datasets, lists of paths."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ssdistill.data.array_rows import ArrayRows
from ssdistill.data.bad_image import BadImage
from ssdistill.data.decode import read_pixels
from ssdistill.data.file_split import FileSplit
from ssdistill.data.labels import class_labels
from ssdistill.data.layouts import arrangement
from ssdistill.data.names import Names
from ssdistill.data.progress import with_bar
from ssdistill.data.splits import RawSplit
from ssdistill.errors import UserError, one_line, shortened

IMAGE_KEYS = ("image", "img", "pixel_values", "images", "jpg", "png", "x")
LABEL_KEYS = ("label", "labels", "target", "y", "fine_label", "cls")
PIECE = 1 << 24
"""Bytes hashed at a time."""


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
        return self.labels is not None or (not self.is_array and _label(self.first) is not None)

    def __len__(self) -> int:
        """Number of images.

        Raises:
            UserError: none, or what has no length.
        """
        try:
            count = len(self.images)
        except TypeError:
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
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{self.name}: the first image cannot be read ({one_line(error)}); pass a list, an "
                "array or a map-style dataset"
            ) from error

    @property
    def size(self) -> int:
        """Shorter side of the first image, in pixels."""
        if self.is_array:
            array = self._array
            return min(arrangement(array.shape, array.dtype, "auto", self.name).sides)
        if _is_path(self.first):
            try:
                return min(read_pixels(Path(self.first), lambda *_: None).shape[:2])
            except BadImage as error:
                raise UserError(f"{self.name}: {self.first}: {error}; remove it") from error
        return min(_pixels(_image(self.first), self.name).shape[:2])

    @cached_property
    def _array(self) -> np.ndarray:
        images = self.images
        return images.detach().cpu().numpy() if hasattr(images, "detach") else np.asarray(images)

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
        if _is_path(self.first):
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
            _hash(_pixels(_image(self.images[i]), self.name), sha256)
        return sha256.hexdigest()

    def _require_same(self) -> None:
        first, again = (_pixels(_image(self.images[0]), self.name) for _ in range(2))
        if first.shape != again.shape or not np.array_equal(first, again, equal_nan=True):
            raise UserError(
                f"{self.name}: the dataset returns another image each time it is read; remove its "
                "random transforms: views are made by ssdistill"
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
        try:
            pixels = _pixels(_image(self._images.images[self._row(i)]), self._images.name)
        except UserError as error:
            raise BadImage(str(error)) from error
        except Exception as error:  # a dataset may raise anything
            raise BadImage(f"{type(error).__name__}: {one_line(error)}") from error
        if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
            raise BadImage("NaN or infinite pixels")
        return pixels

    def auto_window(self, low: float, high: float) -> tuple[float, float]:
        """Return [0, 1] for fractions, the range of values for others."""
        return (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)

    def deep_rows(self) -> Sequence[int]:
        first = _pixels(_image(self._images.first), self._images.name)
        return [] if first.dtype == np.uint8 else range(len(self))

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
            labels = [_label(items[i]) for i in range(len(items))]
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
        classes = tuple(map(str, range(int(label_N.max()) + 1)))
    return FileSplit(title, [(Path("/"), names)], class_N, classes)


def _is_path(item: Any) -> bool:
    return isinstance(item, str | os.PathLike)


def _image(item: Any) -> Any:
    """The image of a dataset's item."""
    if isinstance(item, Mapping):
        found = next((key for key in IMAGE_KEYS if key in item), None)
        if found is None:
            keys = shortened(", ".join(map(str, item)))
            raise UserError(
                f"an item of the dataset has the keys {keys}, and none of {', '.join(IMAGE_KEYS)}; "
                "return the image under one of these"
            )
        return item[found]
    return item[0] if isinstance(item, tuple | list) and item else item


def _label(item: Any) -> Any:
    """The label of a dataset's item; None if it has none."""
    if isinstance(item, Mapping):
        return next((item[key] for key in LABEL_KEYS if key in item), None)
    if isinstance(item, tuple | list) and len(item) > 1:
        return item[1]
    return None


def _pixels(image: Any, name: str) -> np.ndarray:
    """An image as (H, W, C)."""
    if isinstance(image, Image.Image):
        image = image.convert("L" if image.mode in ("1", "L") else "RGB")
    elif hasattr(image, "detach"):
        image = image.detach().cpu().numpy()
        # Tensors of images have their channels first.
        image = image.transpose(1, 2, 0) if image.ndim == 3 else image
    pixels = np.asarray(image)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.dtype.kind not in "buif" or 0 in pixels.shape:
        raise UserError(
            f"{name}: an item is no image ({type(image).__name__} of {pixels.dtype} "
            f"{pixels.shape}); return a PIL image, an array (H, W, C) or a tensor (C, H, W)"
        )
    return pixels


def _hash(pixels: np.ndarray, sha256: Any) -> None:
    sha256.update(f"{pixels.dtype.str} {pixels.shape}".encode())
    sha256.update(np.ascontiguousarray(pixels).tobytes())


OBJECTS: dict[str, tuple[ProgramImages, ProgramImages | None]] = {}
"""Training and test images that a program has named."""


def name_images(name: str, train: ProgramImages, test: ProgramImages | None = None) -> None:
    """Let configs of this process use these images: ``data: {kind: object, name: NAME}``."""
    OBJECTS[name] = train, test
