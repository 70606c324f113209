"""Which folders are splits: the words that people use for training and test pictures."""

import re
from collections.abc import Iterable, Sequence

from ssdistill.errors import UserError, shown

WORDS = {
    "train": ("train", "training", "trn"),
    "test": ("test", "testing", "tst", "heldout", "holdout"),
    "val": ("val", "valid", "validation", "validate", "dev", "devel", "eval", "evaluation"),
}
"""Names of folders by split, in lower case and without what only surrounds them."""
SURROUNDINGS = re.compile(r"[\W_]+|(set|split|data|images|imgs|pictures)(?=$|[\W_])")


def split_of(name: str) -> str | None:
    """``train``, ``test`` or ``val`` where a folder's name is a word for one, in any case.

    ``Train``, ``TESTING``, ``val_set`` and ``training-images`` are such names.
    """
    bare = SURROUNDINGS.sub("", name.lower())
    return next((split for split, words in WORDS.items() if bare in words), None)


def split_folders(tops: Iterable[str]) -> tuple[str | None, list[str]]:
    """The folder of training pictures, and those of test pictures, the likeliest first.

    Raises:
        UserError: several that could be the training pictures.
    """
    by_split: dict[str, list[str]] = {split: [] for split in WORDS}
    # The plain word comes first.
    for name in sorted(tops, key=lambda name: (name not in WORDS, name)):
        if split := split_of(name):
            by_split[split].append(name)
    trains, others = by_split["train"], by_split["test"] + by_split["val"]
    if len(trains) > 1 and others and trains[0] not in WORDS:
        raise UserError(
            f"data.path: folders {', '.join(map(shown, trains))} could each be the training "
            "pictures; call one of them train, or move the others away"
        )
    return (trains[0] if trains else None), others


def name_warnings(
    folder: str, names: Sequence[str], classes: Sequence[str], depth: int, held_out: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What the names of class folders suggest to be otherwise than it is taken, one line each.

    Args:
        folder: data.path.
        names: of all pictures, relative to it.
        classes: names of the class folders, at ``depth``.
        held_out: whether the test pictures are held out here.

    Returns:
        warnings about splits, and warnings about classes.
    """
    of_splits, of_classes = [], []
    parts = [split_of(name) for name in classes]
    # Of few folders; among many, a train is a vehicle.
    if held_out and classes and (all(parts) or ("train" in parts and len(classes) <= 3)):
        of_splits.append(
            f"class folders {_listed(classes)} look like splits and are taken for classes, since "
            "train and test (or val) are not both there; call the splits train and test"
        )
    elif len(classes) == 1:
        inner = f"{folder.rstrip('/')}/{'train/' * depth}{classes[0]}"
        of_classes.append(
            f"one class only ({shown(classes[0])}): there is nothing to tell apart, so no probe is "
            f"run; put each class into a folder of its own, or set data.path={shown(inner)} if the "
            "classes or splits are there"
        )
    below = {name.split("/")[depth + 1] for name in names if name.count("/") > depth + 1}
    if classes and held_out and {"train"} < {split_of(name) for name in below} - {None}:
        inside = sorted(name for name in below if split_of(name))
        of_splits.append(
            f"folders {_listed(inside)} inside the class folders are not taken for splits; put "
            "them on top: train/CLASS and test/CLASS"
        )
    return tuple(of_splits), tuple(of_classes)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(shown, names[:4])) + (", …" if len(names) > 4 else "")
