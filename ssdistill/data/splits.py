"""Base classes of image sources and their splits; labels are read on request only."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from ssdistill.data.deep_pixels import Window
from ssdistill.data.reading import AS_USUAL, Reading
from ssdistill.errors import UserError, nearest
from ssdistill.settings.registry import settings_of

SPLITS = ("train", "test")


class RawSplit(ABC):
    """Images in their original size; ``title`` names the split in messages.

    ``reading`` is how the images are read, if not in the default way.
    """

    title: str
    reading: Reading = AS_USUAL

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def image(self, i: int) -> np.ndarray:
        """Return image ``i`` as (H, W, 3) uint8 RGB, or raw values of more than 8 bits.

        :func:`ssdistill.data.deep_pixels.render` accepts the latter. Raises BadImage if the image
        cannot be read.
        """

    def bands(self, i: int) -> np.ndarray:
        """Return all bands of image ``i``, (H, W, C) in the data type of the file.

        Raises BadImage if the image cannot be read, UserError if a required library is missing.
        """
        pixels = self.image(i)
        return pixels if pixels.ndim == 3 else pixels[..., None]

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

    def weights(self) -> np.ndarray | None:
        """Return (N,) float64 by which images are drawn in training; None if all are equal."""
        return None

    def labels(self) -> np.ndarray:
        """Return the class of each image, (N,) int64 from 0; or, of several labels, (N, K) bool.

        The latter has a truth value for each of K classes; all are False for an image without any.

        Raises:
            UserError: there are none, or they are invalid.
        """
        raise UserError(f"{self.title} has no labels")

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names by label; None if the source does not know them without reading labels."""
        return None


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
    reading: Reading = AS_USUAL
    later: ClassVar[tuple[str, ...]] = ()
    any_bands: bool = False
    """Whether images may have any number of channels; set before anything is listed."""

    def split(self, name: str) -> RawSplit:
        """Return the ``train`` or ``test`` images.

        Raises:
            UserError: the name is unknown, or files of the source are missing or invalid.
        """
        if name not in SPLITS:
            raise UserError(f"unknown split '{name}'{nearest(name, SPLITS)}; choose train or test")
        split = self._split(name)
        split.reading = self.reading
        if self.reading.frames == "all":
            from ssdistill.data.framing import framed

            return framed(self, name, split)
        return split

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

    def split(self, name: str) -> RawSplit:
        return _UnlabeledSplit(self._source.split(name))

    @property
    def reading(self) -> Reading:
        return self._source.reading

    @reading.setter
    def reading(self, reading: Reading) -> None:
        self._source.reading = reading

    @property
    def any_bands(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._source.any_bands

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
        self._split_data, self.title, self.reading = split, split.title, split.reading

    def __len__(self) -> int:
        return len(self._split_data)

    def image(self, i: int) -> np.ndarray:
        return self._split_data.image(i)

    def bands(self, i: int) -> np.ndarray:
        return self._split_data.bands(i)

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

    def weights(self) -> np.ndarray | None:
        return self._split_data.weights()

    def labels(self) -> np.ndarray:
        raise UserError(
            f"{self.title}: labels are disabled by data.labels=none; set data.labels=auto"
        )
