"""Open the images to evaluate an encoder on, from a kind, a path, settings or arrays."""

import logging
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ssdistill.data.image_set import ImageSet
from ssdistill.data.labels import IGNORE, class_labels
from ssdistill.data.named_images import is_dataset, object_settings
from ssdistill.data.opening import open_source, open_stores
from ssdistill.data.settings import StoreSettings
from ssdistill.data.sources.folder import Folder
from ssdistill.data.sources.npz import Npz
from ssdistill.data.splits import SPLITS, Source
from ssdistill.errors import UserError, nearest, no_file, one_line, shortened
from ssdistill.evaluate.labels import check_pair, has_several
from ssdistill.evaluate.subject import LabeledImages, Subject
from ssdistill.files import user_path
from ssdistill.models.spec import RGB
from ssdistill.settings import Size, as_size, height_width
from ssdistill.settings.registry import SOURCES
from ssdistill.teachers import ImageSpec

log = logging.getLogger(__name__)

SAMPLED = 10_000
"""Training images whose statistics are taken for those of all, where they have not been counted."""
KINDS = {
    ".npz": "npz",
    ".npy": "npy",
    ".h5": "hdf5",
    ".hdf5": "hdf5",
    ".mdb": "lmdb",
    ".tar": "tar",
    ".csv": "list",
    ".tsv": "list",
    ".txt": "list",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
"""Kinds of sources by the suffix of their file."""


@dataclass(frozen=True, eq=False)
class Shown:
    """Training and test images.

    Attributes:
        train, test: ``images`` (N, H, W, C), uint8 or float32 in [0, 1], and ``labels`` of the two
            splits, (N,) integers or, of several labels per image, (N, K) truth values.
        labeled: whether both have labels.
        description: one phrase.
        settings: of the data source, where there was one.
    """

    train: Any
    test: Any
    labeled: bool
    description: str
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def image_size(self) -> Size:
        """Side of the test images, in pixels, or height and width."""
        height, width = self.test.images.shape[1:3]
        return as_size(height, width)

    @property
    def several(self) -> bool:
        """Whether images may have several labels."""
        return self.labeled and has_several(self.train)

    def labels_of(self, rows: slice) -> np.ndarray | None:
        """Labels of those test images, (n,) integers; None without any, or of several an image."""
        if not self.labeled or self.several:
            return None
        return np.asarray(self.test.labels)[rows]

    @cached_property
    def facts(self) -> ImageSpec:
        """What an external teacher must know about them."""
        if isinstance(self.train, ImageSet):
            return ImageSpec(self.image_size, self.train.mean, self.train.std)
        step = -(-len(self.train.images) // SAMPLED)
        sampled = self.train.images[::step]
        pixels = np.asarray(sampled, dtype=np.float64) / (255 if sampled.dtype == np.uint8 else 1)
        mean, std = pixels.mean((0, 1, 2)), pixels.std((0, 1, 2))
        # A channel of one value is divided by one level, as that of a store is.
        std[std == 0] = 1 / 255
        return ImageSpec(self.image_size, tuple(mean.tolist()), tuple(std.tolist()))


def open_images(
    data: Any,
    overrides: Mapping[str, Any] | None = None,
    *,
    sizes: Iterable[Size] = (),
    root: str | Path = "runs",
) -> Shown:
    """Open training and test images; they are decoded the first time.

    Args:
        data: kind of a data source (``ssdistill list sources``), a file of one, a folder, a
            mapping of a source's settings, ``((x_train, y_train), (x_test, y_test))`` of
            arrays, a dataset or a pair of them, or what else :func:`ssdistill.use_data` takes; or
            a :class:`Subject` or :class:`Shown`, whose images are taken.
        overrides: settings over those that ``data`` says.
        sizes: of the images that encoders will be given; those of a folder, which have no size
            of their own, are stored at the largest.
        root: runs folder; decoded images are kept in ``data`` below it.

    Raises:
        UserError: no such source or file, settings that it has not, or arrays that are no
            images.
    """
    no_source = isinstance(data, Shown | Subject) or _are_two_arrays(data)
    if no_source and overrides:
        named = shortened(", ".join(map(str, overrides)))
        raise UserError(f"data_settings ({named}) apply to a data source, not to images; omit them")
    if isinstance(data, Shown):
        return data
    if isinstance(data, Subject):
        labeled = all(_labels(split) is not None for split in (data.train, data.test))
        return Shown(data.train, data.test, labeled, "images of a subject")
    if no_source:
        return _sets_from_arrays(data)
    settings = source_settings(data, overrides or {})
    source = open_source(settings)
    size = size_of(source, settings, sizes)
    stores = open_stores(source, settings, size, user_path(root) / "data")
    train, test = (stores[name] for name in SPLITS)
    for warning in source.warnings(labels=True):
        log.warning("%s", warning)
    if not source.has_test:
        log.warning("data: no test images; using the training images instead")
    if source.has_labels:
        for store in (train, test):
            store.labels  # noqa: B018  # report invalid labels before anything is encoded
        check_pair(train.labels, test.labels, train.class_names)
    plain = settings.model_dump(mode="json", exclude_defaults=True) | {"kind": settings.kind}
    description = source.description
    if window := stores["train"].window:
        description += f", black {window[0]:g}, white {window[1]:g}"
    return Shown(train, test, source.has_labels, description, plain)


def size_of(source: Source, settings: StoreSettings, sizes: Iterable[Size]) -> Size:
    """Return the size at which images are stored, for encoders that are given these sizes."""
    if settings.image_size is not None:
        return settings.image_size
    size = source.default_image_size
    # Encoded images have no size of their own, so that any may be requested.
    if source.split("train").encoded() is not None:
        size = max(sizes, default=size, key=lambda one: math.prod(height_width(one)))
    return size


def _are_two_arrays(data: Any) -> bool:
    """Whether data are ``((x_train, y_train), (x_test, y_test))``, with or without labels."""
    if not isinstance(data, list | tuple) or len(data) != 2:
        return False
    return all(
        isinstance(pair, list | tuple)
        and 1 <= len(pair) <= 2
        and not isinstance(pair[0], str | os.PathLike)
        and not is_dataset(pair[0])
        and not _of_paths(pair[0])
        for pair in data
    )


def _of_paths(images: Any) -> bool:
    first = next(iter(images), None) if isinstance(images, list | tuple) else None
    return isinstance(first, str | os.PathLike)


def source_settings(data: Any, overrides: Mapping[str, Any]) -> Any:
    from ssdistill.settings.problems import validated

    if isinstance(data, Mapping):
        settings = dict(data)
    elif not isinstance(data, str | Path):
        readable = hasattr(data, "__len__") and hasattr(data, "__getitem__")
        if isinstance(data, bytes | bytearray) or not readable:
            raise UserError(
                "data: expected a kind, a path, settings, arrays or a dataset, got "
                f"{shortened(repr(data))}"
            )
        settings = object_settings(data)
    elif str(data) in SOURCES.classes:
        settings = {"kind": str(data)}
    elif os.path.isdir(user_path(data)):
        database = os.path.isfile(user_path(data) / "data.mdb")
        settings = {"kind": "lmdb" if database else Folder.kind, "path": str(data)}
    elif (suffix := Path(data).suffix.lower()) in KINDS or os.path.exists(user_path(data)):
        settings = {"kind": KINDS.get(suffix, Npz.kind), "path": str(data)}
    else:
        known = ", ".join(SOURCES.classes)
        remedy = f"name a file, a folder or a source kind: {known}"
        raise UserError(no_file(f"data={data}", remedy, nearest(data, SOURCES.classes)))
    if not isinstance(overrides, Mapping):
        raise UserError(f"data_settings={shortened(repr(overrides))}: expected a mapping of keys")
    settings |= overrides
    SOURCES[settings.get("kind", "")]  # an unknown kind is refused with the nearest one
    return validated(SOURCES.schema(settings["kind"]), settings, "data")


def _sets_from_arrays(pairs: Sequence[Any]) -> Shown:
    train, test = (
        _set_from_array(pair, name) for pair, name in zip(pairs, ("training", "test"), strict=True)
    )
    labeled = train.labels is not None and test.labels is not None
    if labeled:
        with _without_settings():
            check_pair(train.labels, test.labels)
    return Shown(train, test, labeled, f"arrays of {len(train)} training, {len(test)} test images")


def _set_from_array(pair: Sequence[Any], name: str) -> LabeledImages:
    images = as_pixels(pair[0], name)
    if len(pair) == 1 or pair[1] is None:
        return LabeledImages(images, None)
    with _without_settings():
        return LabeledImages(images, class_labels(pair[1], f"data: {name} labels", len(images)))


@contextmanager
def _without_settings() -> Iterator[None]:
    """Arrays have no settings: without labels is to leave them out."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace(IGNORE, "omit them: (x,) alone")) from None


def as_pixels(images: Any, name: str) -> np.ndarray:
    """Return an array of images (N, H, W, C), uint8 or float32; gray ones get three channels.

    Args:
        name: which images, for messages.

    Raises:
        UserError: it holds no images; how to convert it is said.
    """
    try:
        array = np.asarray(images)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"data: {name} images are no array ({one_line(error)}); pass one of uint8"
        ) from None
    if array.ndim == 4 and array.shape[1] in (1, RGB) and array.shape[3] not in (1, RGB, 4):
        array = array.transpose(0, 2, 3, 1)  # as tensors have them
    if array.dtype in (np.float16, np.float64):
        array = array.astype(np.float32)
    remedy = _conversion(array)
    if remedy:
        raise UserError(
            f"data: {name} images must be non-empty uint8, or float32 in [0, 1], of (N, H, W, C) "
            f"or (N, H, W), got {array.dtype} {array.shape}; {remedy}"
        )
    gray = array.ndim == 3
    return np.broadcast_to(array[..., None], (*array.shape, RGB)) if gray else array


def _conversion(array: np.ndarray) -> str | None:
    """How to make images of an array that holds none; None where it holds images."""
    images = array.ndim in (3, 4) and array.size > 0
    if images and array.ndim == 4 and array.shape[1] < min(array.shape[2:]):
        return "put the channels last with x.transpose(0, 2, 3, 1)"
    if array.dtype == np.uint8:
        return None if images else "pass images of one size in one array"
    if array.dtype == np.float32 and images and array.min() >= 0 and array.max() <= 1:
        return None
    if array.dtype.kind in "iu":
        return "convert whole numbers from 0 to 255 with x.astype('uint8')"
    if array.dtype.kind != "f":
        return "pass numbers, images of one size in one array"
    last = ".transpose(0, 2, 3, 1)" if array.ndim == 4 and array.shape[1] == 3 else ""
    return f"convert fractions with (x * 255).round().astype('uint8'){last}"


def _labels(split: Any) -> Any:
    try:
        return split.labels
    except UserError:
        return None
