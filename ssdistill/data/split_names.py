"""Recognize folders of splits by the usual names of training and test images."""

import re
from collections.abc import Iterable, Sequence

from ssdistill.errors import UserError, shown

WORDS = {
    "train": ("train", "training", "trn"),
    "test": ("test", "testing", "tst", "heldout", "holdout"),
    "val": ("val", "valid", "validation", "validate", "dev", "devel", "eval", "evaluation"),
}
"""Names of split folders, in lower case, without surrounding words."""
SURROUNDINGS = re.compile(r"[\W\d_]+|(dataset|set|split|data|images?|imgs?|pictures)(?=$|[\W\d_])")
BETWEEN = re.compile(r"[\W\d_]+")
"""Separators between the words of a name."""


def split_of(name: str) -> str | None:
    """Return ``train``, ``test`` or ``val`` if a folder's name stands for one; None otherwise.

    Examples are ``Train``, ``TESTING``, ``val_set``, ``training-images`` and ``train2017``.
    """
    return _split_of_word(SURROUNDINGS.sub("", name.lower()))


def _split_of_word(word: str) -> str | None:
    return next((split for split, words in WORDS.items() if word in words), None)


def is_generic(name: str) -> bool:
    """Whether a folder's name, such as ``images`` or ``data``, is neither class nor split."""
    return not SURROUNDINGS.sub("", name.lower()) and any(map(str.isalpha, name))


def _in_compound(name: str) -> tuple[str, str] | None:
    """Return the split and the other words of names such as ``seg_train`` or ``test_seg``."""
    words = [word for word in BETWEEN.split(name.lower()) if word and not is_generic(word)]
    for at in (-1, 0):
        if len(words) > 1 and (split := _split_of_word(words[at])):
            return split, "_".join(words[:-1] if at else words[1:])
    return None


def split_of_file(path: str) -> str | None:
    """Return the split in a relative path: ``train-00000-of-00002.parquet``, ``test/0.x``.

    Folders take precedence over words of the file name; None if these stand for two splits.
    """
    *folders, name = path.split("/")
    for folder in folders:
        if split := split_of(folder):
            return split
    words = {_split_of_word(word) for word in BETWEEN.split(name.rsplit(".", 1)[0].lower())}
    words -= {None}
    return words.pop() if len(words) == 1 else None


def split_folders(tops: Iterable[str]) -> tuple[str | None, list[str]]:
    """Return the training folder, and candidates for the test folder, most likely first.

    If no name is a word for a split, ``x_train`` and ``x_test`` are recognized, provided all
    names have the same ``x``.

    Raises:
        UserError: several folders could hold the training images.
    """
    # Plain words come first.
    names = sorted(tops, key=lambda name: (name not in WORDS, name))
    by_split = _by_split(names)
    trains, others = by_split["train"], by_split["test"] + by_split["val"]
    if len(trains) > 1 and others and trains[0] not in WORDS:
        raise UserError(
            f"data.path: any of the folders {', '.join(map(shown, trains))} could hold the "
            "training images; rename one of them to train, or move the others away"
        )
    return (trains[0] if trains else None), others


def _by_split(names: Sequence[str]) -> dict[str, list[str]]:
    splits = {name: split_of(name) for name in names}
    compounds = {name: pair for name in names if (pair := _in_compound(name))}
    stems = {stem for _, stem in compounds.values()}
    if not any(splits.values()) and len(stems) == 1:
        words = stems.pop().split("_")
        if all(set(words) <= set(BETWEEN.split(name.lower())) for name in names):
            splits |= {name: split for name, (split, _) in compounds.items()}
    return {split: [name for name in names if splits[name] == split] for split in WORDS}


def name_warnings(
    folder: str, names: Sequence[str], classes: Sequence[str], depth: int, held_out: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Warn about class folders that may not be classes, one line each.

    Args:
        folder: a folder of data.path.
        names: of all images, relative to it.
        classes: names of the class folders, at ``depth``.
        held_out: whether test images are held out, because no split folders were found.

    Returns:
        warnings about splits, and warnings about classes.
    """
    about_splits, about_classes = [], []
    parts = [split_of(name) for name in classes]
    suspicious = all(split_of(name) or _in_compound(name) for name in classes)
    # Only if there are few; among many classes, a train is a vehicle.
    if held_out and classes and (suspicious or ("train" in parts and len(classes) <= 3)):
        about_splits.append(
            f"class folders {_listed(classes)} look like splits but are used as classes, since "
            "train and test (or val) are not both present; rename the splits to train and test"
        )
    elif len(classes) == 1:
        about_classes.append(_one_class(folder, names, classes[0], depth))
    below = {name.split("/")[depth + 1] for name in names if name.count("/") > depth + 1}
    if classes and held_out and {"train"} < {split_of(name) for name in below} - {None}:
        inside = sorted(name for name in below if split_of(name))
        about_splits.append(
            f"folders {_listed(inside)} inside class folders are not used as splits; move them to "
            "the top: train/CLASS and test/CLASS"
        )
    return tuple(about_splits), tuple(about_classes)


def _one_class(folder: str, names: Sequence[str], name: str, depth: int) -> str:
    """Return the warning that all images are in the class folder ``name``."""
    folders = [n.split("/")[:-1] for n in names]
    folders = [path for path in folders if path[depth : depth + 1] == [name]]
    inner, below = folders[0][: depth + 1], set[str]()
    while all(len(path) > len(inner) for path in folders):
        below = {path[len(inner)] for path in folders}
        if len(below) > 1:
            break
        inner.append(below.pop())
    inside = f", in its folders {_listed(sorted(below))}" if below else ""
    path = shown("/".join((folder.rstrip("/"), *inner)))
    remedy = "put each class into a separate folder"
    if below:
        remedy = f"set data.path={path} if these are the classes or splits, or {remedy}"
    return (
        f"one class only ({shown(name)}): all images are in this folder{inside}, so "
        f"evaluation is skipped; {remedy}"
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(shown, names[:4])) + (", …" if len(names) > 4 else "")
