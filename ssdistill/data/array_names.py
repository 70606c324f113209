"""Usual names of arrays of images and labels in array files."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace

from ssdistill.errors import UserError, nearest, shown

MOST_NAMED = 10
"""Maximum number of arrays listed in a message."""
_TEST = ("test", "val", "valid", "validation")
_IMAGES = ("images", "image", "imgs", "x", "data", "inputs")
_LABELS = ("labels", "label", "y", "targets", "target")


def _combined_names(splits: Sequence[str], parts: Sequence[str]) -> tuple[str, ...]:
    pairs = [(split, part) for split in splits for part in parts]
    return tuple(name for a, b in pairs for name in (f"{a}_{b}", f"{b}_{a}", f"{a}/{b}"))


TRAIN_IMAGES = (*_combined_names(("train", "training"), _IMAGES), "train", "x_tr")
TRAIN_LABELS = (*_combined_names(("train", "training"), _LABELS), "y_tr")
TEST_IMAGES = (*_combined_names(_TEST, _IMAGES), "test", "x_te")
TEST_LABELS = (*_combined_names(_TEST, _LABELS), "y_te")
ALL_IMAGES = (*_IMAGES, "arr_0")
ALL_LABELS = (*_LABELS, "fine_labels", "classes")


@dataclass(frozen=True)
class Names:
    """Names of the arrays of a file.

    Attributes:
        test_images: None if test images are held out of ``images``.
        labels, test_labels: None if there are no labels.
    """

    images: str | None = None
    labels: str | None = None
    test_images: str | None = None
    test_labels: str | None = None

    @property
    def labeled(self) -> bool:
        return bool(self.labels and (self.test_labels or not self.test_images))

    def __str__(self) -> str:
        roles = ("images", "labels", "test images", "test labels")
        names = (getattr(self, field.name) for field in fields(self))
        return ", ".join(f"{r} '{shown(n)}'" for r, n in zip(roles, names, strict=True) if n)


def find_names(keys: Collection[str], chosen: Names, where: str, remedy: str = "") -> Names:
    """Return the names of images and labels among ``keys``, by default the usual ones.

    Args:
        chosen: names set by the user.
        where: key and file, for messages.
        remedy: a second remedy, for the message that no images were found.

    Raises:
        UserError: a chosen name is missing, or images have no usual name or several.
    """
    for name in (getattr(chosen, field.name) for field in fields(chosen)):
        if name is not None and name not in keys:
            raise UserError(
                f"{where} has no array '{shown(name)}'{nearest(name, keys)}, only {listed(keys)}"
            )
    if chosen.images:
        return chosen
    train = _single_match(keys, TRAIN_IMAGES, where)
    if train:
        test = chosen.test_images or _single_match(keys, TEST_IMAGES, where)
        labels = chosen.labels or _first(keys, TRAIN_LABELS)
    else:
        train = _single_match(keys, ALL_IMAGES, where)
        test = chosen.test_images or _single_match(keys, TEST_IMAGES, where)
        labels = chosen.labels or _first(keys, ALL_LABELS)
    if not train:
        raise UserError(
            f"{where}: no array has a usual name, such as train_images; found {listed(keys)}; set "
            f"data.image_key{', or ' + remedy if remedy else ''}"
        )
    names = Names(train, labels, test)
    if test:
        names = replace(names, test_labels=chosen.test_labels or _first(keys, TEST_LABELS))
    return names


def listed(keys: Collection[str]) -> str:
    """Return names on one line, at most :data:`MOST_NAMED` of them."""
    named = shown(", ".join(list(keys)[:MOST_NAMED]))[:200] or "none"
    more = len(keys) - MOST_NAMED
    return named + (f" and {more} more" if more > 0 else "")


def _matches(keys: Collection[str], usual: Sequence[str]) -> list[str]:
    """Return the keys that are usual names, most usual first."""
    plain: dict[str, list[str]] = {}
    for key in keys:
        plain.setdefault(key.lower().replace("-", "_").strip("/"), []).append(key)
    return [key for name in usual for key in plain.get(name, [])]


def _first(keys: Collection[str], usual: Sequence[str]) -> str | None:
    return next(iter(_matches(keys, usual)), None)


def _single_match(keys: Collection[str], usual: Sequence[str], where: str) -> str | None:
    matches = _matches(keys, usual)
    # Validation and test images may both exist; test images come first.
    if len(matches) > 1 and usual is not TEST_IMAGES:
        raise UserError(
            f"{where} has images under several names: {listed(matches)}; set data.image_key to one"
        )
    return matches[0] if matches else None
