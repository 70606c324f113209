"""Images that a program has in memory or reads by itself: arrays, datasets, lists of paths."""

import hashlib
import os
from collections.abc import Mapping, Sequence
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
        return min(pixels_of(image_of(self.first), self.name).shape[:2])

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
            _hash(pixels_of(image_of(self.images[i]), self.name), sha256)
        return sha256.hexdigest()

    def _require_same(self) -> None:
        first, again = (pixels_of(image_of(self.images[0]), self.name) for _ in range(2))
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
            pixels = pixels_of(image_of(self._images.images[self._row(i)]), self._images.name)
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
        first = pixels_of(image_of(self._images.first), self._images.name)
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
        classes = tuple(map(str, range(int(label_N.max()) + 1)))
    return FileSplit(title, [(Path("/"), names)], class_N, classes)


def _is_path(item: Any) -> bool:
    return isinstance(item, str | os.PathLike)


def _hash(pixels: np.ndarray, sha256: Any) -> None:
    sha256.update(f"{pixels.dtype.str} {pixels.shape}".encode())
    sha256.update(np.ascontiguousarray(pixels).tobytes())


OBJECTS: dict[str, tuple[ProgramImages, ProgramImages | None]] = {}
"""Training and test images that a program has named."""


def name_images(name: str, train: ProgramImages, test: ProgramImages | None = None) -> None:
    """Let configs of this process use these images: ``data: {kind: object, name: NAME}``."""
    OBJECTS[name] = train, test


def object_settings(data: Any, test: Any = None, name: str | None = None) -> dict[str, Any]:
    """Name images of a program, and return what a config says of them.

    Args:
        data: an array or tensor; a map-style dataset; a list of paths; a tuple of one of these
            and labels; or two of these tuples, or two datasets, to train and to test on.
        test: images to evaluate on; by default some are held out.
        name: of the images; by default from their content.

    Raises:
        UserError: no images.
    """
    if test is None and _is_pair(data) and (all(map(_is_pair, data)) or all(map(is_dataset, data))):
        data, test = data
    train = _program_images(data, "data")
    held = None if test is None else _program_images(test, "test")
    name = name or f"images-{_key(train)}"
    name_images(name, train, held)
    return {"kind": "object", "name": name}


def is_dataset(data: Any) -> bool:
    """Whether data are read by number and are neither a sequence nor an array."""
    plain = isinstance(data, Sequence | Mapping | ProgramImages) or hasattr(data, "dtype")
    return not plain and hasattr(data, "__getitem__") and hasattr(data, "__len__")


def _program_images(data: Any, name: str) -> ProgramImages:
    if _is_pair(data):
        return ProgramImages(data[0], data[1], name)
    images = ProgramImages(data, None, name)
    if not images.is_array:
        images.first  # noqa: B018  # no dataset is refused here
    return images


def _is_pair(data: Any) -> bool:
    """Whether data are two things, rather than a list of two paths."""
    pair = isinstance(data, tuple) and len(data) == 2  # a list of two is one of images
    return pair and not any(_is_path(item) for item in data)


def _key(images: ProgramImages) -> str:
    if images.is_array or not _is_path(images.first):
        return images.identity[:8]
    paths: Sequence[Any] = images.images
    text = "\0".join(os.fspath(path) for path in paths)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:8]
