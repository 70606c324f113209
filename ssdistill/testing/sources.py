"""Checks of data sources. They read labels as evaluations do, of the source that is checked."""

import json
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ssdistill.data.bad_image import BadImage
from ssdistill.data.recipes import RECIPES
from ssdistill.data.splits import SPLITS, RawSplit, Source
from ssdistill.data.store import open_store
from ssdistill.errors import UserError
from ssdistill.testing.candidate import (
    DESCRIBED,
    Candidate,
    Check,
    demand,
    one_line_error,
    refused,
)

READ = 48
"""Images of a split that are read; a source may have millions."""
SIDE, THREADS = 8, 4


def splits_of(candidate: Candidate) -> dict[str, RawSplit]:
    """The splits that have images, opened once."""

    def opened() -> dict[str, RawSplit]:
        source = candidate.build()
        names = [name for name in SPLITS if name == "train" or source.has_test]
        return {name: source.split(name) for name in names}

    return candidate.once("splits", opened)


def _numbers(split: RawSplit) -> list[int]:
    return sorted({int(i) for i in np.linspace(0, len(split) - 1, min(READ, len(split)))})


def _image(split: RawSplit, number: int) -> np.ndarray | None:
    """One image; None where it cannot be read, which is said in one line."""
    try:
        return split.image(number)
    except BadImage as error:
        one_line_error(error, f"image {number}")
        return None


def says_what_it_is(candidate: Candidate) -> None:
    """What listings and plans say of it: description, size, recipe, and whether it has labels."""
    demand(issubclass(candidate.cls, Source), "it is no subclass of Source")
    source = candidate.build()
    text = source.description
    demand(isinstance(text, str) and text and "\n" not in text, "description must be one line")
    size = source.default_image_size
    demand(isinstance(size, int) and size > 0, f"default_image_size is {size!r}, not pixels")
    recipe = source.default_recipe
    known = recipe is None or recipe in RECIPES
    demand(known, f"default_recipe={recipe!r} is unknown; known: {', '.join(RECIPES)}")
    for labels in (True, False):
        for line in source.warnings(labels):
            demand("\n" not in line, "a warning has several lines")


def settings_are_kept(candidate: Candidate) -> None:
    """Settings are attributes of the same name, and plain values, since hashes contain them."""
    source = candidate.build()
    for name in candidate.own_settings:
        demand(hasattr(source, name), f"the setting {name} is kept under no attribute of its name")
    json.dumps(source.settings, allow_nan=False, default=_plain)
    demand(source.settings == candidate.build().settings, "settings differ from object to object")


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | Path):
        return str(value)
    raise AssertionError(f"a setting is a {type(value).__name__}, which no config can have")


def unknown_splits_are_refused(candidate: Candidate) -> None:
    """There are ``train`` and ``test``; another one is refused in one line."""
    text = refused(lambda: candidate.build().split("trian"), "an unknown split")
    demand("trian" in text, f"an unknown split is refused without its name: {text}")


def images_are_pixels(candidate: Candidate) -> None:
    """Images are (H, W, 3) uint8, or real numbers of more than 8 bits, and most can be read."""
    for name, split in splits_of(candidate).items():
        demand(len(split) > 0, f"the {name} split has no images")
        found = [_image(split, number) for number in _numbers(split)]
        images = [image for image in found if image is not None]
        demand(2 * len(images) > len(found), f"most images of the {name} split cannot be read")
        for image in images:
            deep = image.dtype != np.uint8
            usable = image.ndim == 3 and image.shape[2] == 3 and image.size
            demand(usable or (deep and image.ndim >= 2), f"an image has shape {image.shape}")
            demand(image.dtype.kind in "uif", f"an image is {image.dtype}")


def names_differ(candidate: Candidate) -> None:
    """Every image has a name of its own, by which messages and stores call it."""
    for split_name, split in splits_of(candidate).items():
        names = [split.name(number) for number in _numbers(split)]
        text = all(isinstance(name, str) and name for name in names)
        demand(text, f"names of the {split_name} split must be strings")
        demand(len(set(names)) == len(names), f"two images of the {split_name} split have one name")


def reading_again_gives_the_same(candidate: Candidate) -> None:
    """Another object with the same settings has the same images in the same order."""
    source = candidate.build()
    for name, split in splits_of(candidate).items():
        again = source.split(name)
        demand(len(again) == len(split), f"the {name} split has another length when it is reopened")
        for number in _numbers(split):
            same = split.name(number) == again.name(number)
            demand(same, f"image {number} of {name} has another name when it is reopened")
            one, other = _image(split, number), _image(again, number)
            same = (one is None) == (other is None)
            if one is not None and other is not None:
                same = np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
            demand(same, f"image {number} of {name} is another when it is read again")


def identity_is_stable(candidate: Candidate) -> None:
    """The identity of a split is the same for every object."""
    source = candidate.build()
    found = {name: split.identity() for name, split in splits_of(candidate).items()}
    for name, identity in found.items():
        demand(isinstance(identity, str) and identity, "identity must be a string")
        same = source.split(name).identity() == identity
        demand(same, f"the identity of the {name} split differs from object to object")


def threads_may_read(candidate: Candidate) -> None:
    """Images can be read by several threads at once, as stores and loaders do."""
    for name, split in splits_of(candidate).items():
        numbers = _numbers(split)
        alone = [_image(split, number) for number in numbers]
        with ThreadPoolExecutor(THREADS) as pool:
            together = list(pool.map(lambda number, of=split: _image(of, number), numbers))
        for one, other in zip(alone, together, strict=True):
            same = (one is None) == (other is None)
            if one is not None and other is not None:
                same = np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
            demand(same, f"an image of the {name} split is another when several threads read")


def array_is_its_images(candidate: Candidate) -> None:
    """Where a split is one array, that has the images."""
    for name, split in splits_of(candidate).items():
        images = split.array()
        if images is None:
            continue
        demand(len(images) == len(split), f"array() of the {name} split has another length")
        demand(images.dtype == np.uint8, f"array() is {images.dtype}; return None for others")
        for number in _numbers(split):
            same = np.array_equal(images[number], split.image(number))
            demand(same, f"array()[{number}] of the {name} split is not image({number})")


def labels_fit_the_images(candidate: Candidate) -> None:
    """Labels are one class of each image, or truth values; without any, there is one line."""
    source = candidate.build()
    for name, split in splits_of(candidate).items():
        if not source.has_labels:
            refused(split.labels, f"labels of the {name} split, which has_labels denies,")
            continue
        labels = split.labels()
        demand(len(labels) == len(split), f"{len(labels)} labels of {len(split)} {name} images")
        single = labels.ndim == 1 and labels.dtype == np.int64
        several = labels.ndim == 2 and labels.dtype == bool
        form = f"labels are {labels.dtype} {labels.shape}"
        demand(single or several, f"{form}; return int64 (N,), or bool (N, K)")
        classes = labels.shape[1] if several else int(labels.max()) + 1
        demand(several or labels.min() >= 0, "labels are negative; count classes from 0")
        named = split.class_names is None or len(split.class_names) >= classes
        demand(named, f"class_names has fewer than {classes} names")


def weights_fit_the_images(candidate: Candidate) -> None:
    """Weights, where there are any, are one finite number above 0 or 0 for each image."""
    for name, split in splits_of(candidate).items():
        weights = split.weights()
        if weights is None:
            continue
        demand(len(weights) == len(split), f"the {name} split has {len(weights)} weights")
        usable = np.isfinite(weights).all() and (weights >= 0).all() and weights.sum() > 0
        demand(usable, f"weights of the {name} split must be finite and not negative")


def store_is_made_once(candidate: Candidate) -> None:
    """A store is made of the images, and found again."""
    source = candidate.build()
    for name, split in splits_of(candidate).items():
        with tempfile.TemporaryDirectory() as folder:
            try:
                store = open_store(source, name, SIDE, Path(folder), max_bad=0.5)
            except UserError as error:
                raise AssertionError(f"no store can be made: {error}") from error
            shape = len(split) - len(store.bad), SIDE, SIDE, 3
            demand(store.images.shape == shape, f"the store has shape {store.images.shape}")
            again = open_store(candidate.build(), name, SIDE, Path(folder), max_bad=0.5)
            same = again.folder == store.folder and again.fingerprint == store.fingerprint
            demand(same, f"the store of the {name} split is not found again")


SOURCE_CHECKS = {
    **DESCRIBED,
    "description": Check(says_what_it_is),
    "settings": Check(settings_are_kept),
    "unknown_split": Check(unknown_splits_are_refused),
    "images": Check(images_are_pixels),
    "names": Check(names_differ),
    "repeatable": Check(reading_again_gives_the_same),
    "identity": Check(identity_is_stable),
    "threads": Check(threads_may_read),
    "array": Check(array_is_its_images),
    "labels": Check(labels_fit_the_images),
    "weights": Check(weights_fit_the_images),
    "store": Check(store_is_made_once),
}
