"""Base classes of image sources and their splits; labels are read on request only."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from ssdistill.data.bad_image import BadImage
from ssdistill.data.deep_pixels import Window
from ssdistill.data.labels import class_labels
from ssdistill.errors import UserError, nearest
from ssdistill.settings.registry import settings_of

SPLITS = ("train", "test")


class RawSplit(ABC):
    """Images in their original size; ``title`` names the split in messages."""

    title: str

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def image(self, i: int) -> np.ndarray:
        """Return image ``i`` as (H, W, 3) uint8 RGB, or raw values of more than 8 bits.

        :func:`ssdistill.data.deep_pixels.render` accepts the latter. Raises BadImage if the image
        cannot be read.
        """

    @abstractmethod
    def name(self, i: int) -> str: ...

    @abstractmethod
    def identity(self) -> str:
        """Return a cheap key that changes whenever the images change; independent of labels."""

    def array(self) -> np.ndarray | None:
        """Return all images as (N, H, W, 3) uint8 if they are one array, else None."""
        return None

    def encoded(self) -> Any:
        """Return this split as an ``EncodedSplit`` if its images are encoded, else None."""
        return None

    def deep_rows(self) -> Sequence[int]:
        """Return the rows of images of more than 8 bits per channel, without decoding any."""
        return []

    def auto_window(self, low: float, high: float) -> Window:
        """Return the default window for values from ``low`` to ``high``."""
        return low, high

    def notes(self) -> list[str]:
        """Return a phrase for each image that was read only in part, such as animations."""
        return []

    def labels(self) -> np.ndarray:
        """Return (N,) int64 classes, from 0; raise UserError if there are none."""
        raise UserError(f"{self.title} has no labels")

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names by label; None if the source does not know them without reading labels."""
        return None


class ArraySplit(RawSplit):
    """Images of one array, loaded on first use.

    Args:
        images: returns (N, H, W, 3) or (N, H, W): uint8, or other numbers for a window.
        labels: returns (N,) integers; None for unlabeled images.
        classes: returns the class names; None if only the labels tell them.
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
    def _images(self) -> np.ndarray:
        """(N, H, W, 3) uint8; of other types also (N, H, W)."""
        images = self._load()
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


class Source(ABC):
    """Base class of image sources; nothing is read before ``split`` is called.

    Keyword-only constructor arguments are config keys, stored as attributes of the same name.
    Subclasses set ``kind``, ``has_labels``, ``default_image_size`` (side in pixels, for configs
    without ``data.image_size``) and ``description``; ``default_recipe``, the name of a view
    recipe, if views for natural images would be wrong; and ``has_test`` if there may be no test
    images. ``later`` lists arguments added after version 0.1, which at their defaults are not
    part of ``settings`` and hashes.
    """

    kind: ClassVar[str]
    has_labels: bool = True
    has_test: bool = True
    default_image_size: int
    description: str
    default_recipe: str | None = None
    later: ClassVar[tuple[str, ...]] = ()

    def split(self, name: str) -> RawSplit:
        """Return the ``train`` or ``test`` images.

        Raises:
            UserError: the name is unknown, or files of the source are missing or invalid.
        """
        if name not in SPLITS:
            raise UserError(f"unknown split '{name}'{nearest(name, SPLITS)}; choose train or test")
        return self._split(name)

    @abstractmethod
    def _split(self, name: str) -> RawSplit: ...

    def warnings(self, labels: bool) -> tuple[str, ...]:
        """Return warnings, one line each, including those about labels if these are read."""
        return ()

    @property
    def settings(self) -> dict[str, Any]:
        """The keyword-only constructor arguments of this source that are part of hashes."""
        defaults = inspect.signature(type(self).__init__).parameters
        values = settings_of(self)
        return {
            name: value
            for name, value in values.items()
            if name not in self.later or value != defaults[name].default
        }


class Unlabeled(Source):
    """A source with its labels hidden.

    Args:
        source: of the images.
    """

    kind: str
    has_labels = False

    def __init__(self, source: Source):
        self._source = source
        self.kind = source.kind
        self.default_recipe = source.default_recipe

    @property
    def has_test(self) -> bool:
        return self._source.has_test

    @property
    def default_image_size(self) -> int:
        return self._source.default_image_size

    @property
    def description(self) -> str:
        return f"{self._source.description} (labels ignored)"

    @property
    def settings(self) -> dict[str, Any]:
        return self._source.settings

    def warnings(self, labels: bool) -> tuple[str, ...]:
        return self._source.warnings(labels=False)

    def _split(self, name: str) -> RawSplit:
        return _UnlabeledSplit(self._source.split(name))


class _UnlabeledSplit(RawSplit):
    """A split whose labels are never read."""

    def __init__(self, split: RawSplit):
        self._split_data, self.title = split, split.title

    def __len__(self) -> int:
        return len(self._split_data)

    def image(self, i: int) -> np.ndarray:
        return self._split_data.image(i)

    def name(self, i: int) -> str:
        return self._split_data.name(i)

    def identity(self) -> str:
        return self._split_data.identity()

    def array(self) -> np.ndarray | None:
        return self._split_data.array()

    def encoded(self) -> Any:
        return self._split_data.encoded()

    def deep_rows(self) -> Sequence[int]:
        return self._split_data.deep_rows()

    def auto_window(self, low: float, high: float) -> Window:
        return self._split_data.auto_window(low, high)

    def notes(self) -> list[str]:
        return self._split_data.notes()

    def labels(self) -> np.ndarray:
        raise UserError(
            f"{self.title}: labels are disabled by data.labels=none; set data.labels=auto"
        )
