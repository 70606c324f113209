"""Images of a program by a name, under which configs find them."""

import hashlib
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ssdistill.data.python_data import ProgramImages, is_path
from ssdistill.errors import UserError, shortened

OBJECTS: dict[str, tuple[ProgramImages, ProgramImages | None]] = {}
"""Training and test images that a program has named."""


def name_images(name: str, train: ProgramImages, test: ProgramImages | None = None) -> None:
    """Let configs of this process use these images: ``data: {kind: object, name: NAME}``."""
    OBJECTS[name] = train, test


def object_settings(data: Any, test: Any = None, name: str | None = None) -> dict[str, Any]:
    """Name images of a program, and return what a config says of them.

    Args:
        data: an array or tensor; a map-style dataset; paths; a tuple of one of these and labels;
            or two of these tuples, or two datasets, to train and to test on.
        test: images to evaluate on; by default some are held out.
        name: of the images; by default from their content.

    Raises:
        UserError: no images.
    """
    data, test = _listed(data), _listed(test)
    if test is None and _is_pair(data) and (all(map(_is_pair, data)) or all(map(is_dataset, data))):
        data, test = data
    train = _program_images(data, "data")
    held = None if test is None else _program_images(test, "test")
    name = name or _free_name(f"images-{_key(train)}", train, held)
    name_images(name, train, held)
    return {"kind": "object", "name": name}


def _free_name(name: str, train: ProgramImages, test: ProgramImages | None) -> str:
    """The name, or the next one, that no images with other labels have."""
    for number in itertools.count(2):
        known = OBJECTS.get(name)
        if known is None or (_same(known[0], train) and _same(known[1], test)):
            return name
        name = f"{name.split('.')[0]}.{number}"
    raise AssertionError("never reached")


def _same(known: ProgramImages | None, images: ProgramImages | None) -> bool:
    """Whether two sets of equal pixels have equal labels."""
    if known is None or images is None:
        return known is images
    if known.labels is None or images.labels is None:
        if known.labels is not images.labels:
            return False
        return known.images is images.images or not (known.has_labels or images.has_labels)
    return len(known) == len(images) and np.array_equal(known.labels, images.labels)


def is_dataset(data: Any) -> bool:
    """Whether data are read by number and are neither a sequence nor an array."""
    plain = isinstance(data, Sequence | Mapping | ProgramImages) or hasattr(data, "dtype")
    return not plain and hasattr(data, "__getitem__") and hasattr(data, "__len__")


def _listed(data: Any) -> Any:
    """Paths that can be read through once, as a list; all else as it is."""
    if not isinstance(data, Iterator):
        return data
    first = next(data, None)
    if first is None or is_path(first):
        return [] if first is None else [first, *data]
    raise UserError(
        f"data: {type(data).__name__} can be read through only once; pass a list, an array or a "
        "map-style dataset"
    )


def _program_images(data: Any, name: str) -> ProgramImages:
    if _is_pair(data):
        images = ProgramImages(data[0], data[1], name)
        _check_labels(images)
        return images
    images = ProgramImages(data, None, name)
    if not images.is_array:
        images.first  # noqa: B018  # no dataset is refused here
    return images


def _check_labels(images: ProgramImages) -> None:
    """Refuse what cannot be labels; their values are not read."""
    labels, count = images.labels, len(images)
    shape = getattr(labels, "shape", None)
    if shape is None:
        shape = (len(labels),) if hasattr(labels, "__len__") else ()
    sizes: tuple[int, ...] = tuple(shape)
    if len(sizes) not in (1, 2) or sizes[0] != count:
        raise UserError(
            f"{images.name}: the second of (images, labels) must have one label for each of the "
            f"{count} images, but has shape {sizes}; to train and to test on, pass "
            "((images, labels), (images, labels)) or test=…"
        )


def _is_pair(data: Any) -> bool:
    """Whether data are two things, rather than a list of two paths."""
    pair = isinstance(data, tuple) and len(data) == 2  # a list of two is one of images
    return pair and not any(is_path(item) for item in data)


def _key(images: ProgramImages) -> str:
    if images.is_array or not is_path(images.first):
        return images.identity[:8]
    paths: Sequence[Any] = images.images
    wrong = next((i for i, path in enumerate(paths) if not is_path(path)), None)
    if wrong is not None:
        what = shortened(repr(paths[wrong]))
        raise UserError(f"{images.name}: item {wrong} is no path, as the first is, but {what}")
    text = "\0".join(os.fspath(path) for path in paths)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:8]
