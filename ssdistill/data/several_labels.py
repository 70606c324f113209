"""Several labels per image: convert texts of labels to a truth value for each image and class.

Labels are written as names or numbers of classes, or as 0 or 1 for each class. An image without
labels has a row of zeros.
"""

import re
from collections.abc import Sequence

import numpy as np

from ssdistill.data.labels import IGNORE, class_labels
from ssdistill.errors import UserError
from ssdistill.machine import memory_bytes

BETWEEN = "\x1f"
"""Mark before each value of a list that is stored as one text."""
MOST_CLASSES = 1 << 16
"""Maximum number of classes; a larger class number is surely an error."""
WHOLE = re.compile(r"[+-]?\d{1,18}")
BITS = {"0": False, "1": True, "0.0": False, "1.0": True} | {
    word: word.lower() == "true" for word in ("False", "True", "FALSE", "TRUE", "false", "true")
}
Parts = tuple[str, ...]


def joined(values: Sequence[object]) -> str:
    """Return a list as one text, for :func:`parts_of`; an empty list becomes the mark alone."""
    return BETWEEN + BETWEEN.join("" if value is None else str(value) for value in values)


def parts_of(text: str, separator: str | None = None) -> Parts:
    """Return the labels in a text, or in a list stored by :func:`joined`.

    Separators at the ends of a text are ignored.

    Raises:
        ValueError: there is nothing between two separators, or a list contains null.
    """
    if text.startswith(BETWEEN):
        values = text[1:].split(BETWEEN) if len(text) > 1 else []
        return tuple(part for value in values for part in _separated(value, separator, True))
    return _separated(text, separator, False)


def are_several(text: str, parts: Parts) -> bool:
    """Whether a text shows that images have several labels: it has several, or an empty list."""
    return len(parts) > 1 or (not parts and text.startswith(BETWEEN))


def numbers_of(texts: Sequence[str]) -> np.ndarray | None:
    """Return labels as numbers if all are numeric; None for names."""
    if all(WHOLE.fullmatch(text) for text in texts):
        return np.array([int(text) for text in texts], dtype=np.int64)
    if any("_" in text for text in texts):  # Python reads 1_0 as 10
        return None
    try:
        return np.array([float(text) for text in texts])
    except ValueError:
        return None


def multi_hot(
    parts_U: Sequence[Parts], title: str, names: tuple[str, ...] | None = None
) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Convert lists of labels to a truth value for each class.

    Lists of equal length that consist of 0 and 1, with repetitions, have a value for each class,
    and so have lists of two that are all ``0, 1`` or ``1, 0``, in both orders.
    Otherwise numbers are classes from 0, and other texts are class names, which are sorted.

    Args:
        title: of the source in messages, such as ``data.path=…``.
        names: of the classes, by number, if known.

    Returns:
        (U, K) bool, and names by class; None for numbers without names.

    Raises:
        UserError: numbers are not classes, or there are more classes than names.
    """
    flat = [part for parts in parts_U for part in parts]
    length_U = np.array([len(parts) for parts in parts_U])
    if set(flat) <= BITS.keys() and (_repeats(parts_U) or _are_one_hot_pairs(parts_U)):
        return _labels_from_bits(parts_U, length_U, title, names), names
    owner_M = np.repeat(np.arange(len(parts_U)), length_U)
    numbers = numbers_of(flat)
    if numbers is None:
        names = tuple(sorted(set(flat)))
        place = {name: k for k, name in enumerate(names)}
        class_M, size = np.array([place[part] for part in flat]), len(names)
    else:
        class_M = class_labels(numbers, f"{title}: its labels")
        size = int(class_M.max(initial=-1)) + 1
        if size > (most := MOST_CLASSES if names is None else len(names)):
            limit = (
                f"at most {most} are supported" if names is None else f"there are {most} classes"
            )
            raise UserError(
                f"{title}: its labels go up to {size - 1}, but {limit}; number the classes from "
                f"0, or {IGNORE}"
            )
        size = size if names is None else len(names)
    _check_size(len(parts_U), size, title)
    value_UK = np.zeros((len(parts_U), size), dtype=bool)
    value_UK[owner_M, class_M] = True
    return value_UK, names


def rows_of(value_UK: np.ndarray, code_N: np.ndarray, title: str) -> np.ndarray:
    """Return the truth values of each image, (N, K).

    Raises:
        UserError: they do not fit into memory.
    """
    _check_size(len(code_N), value_UK.shape[1], title)
    return value_UK[code_N]


def _check_size(images: int, classes: int, title: str) -> None:
    if images * classes > memory_bytes() // 4:
        raise UserError(
            f"{title}: labels of {images} images and {classes} classes take "
            f"{images * classes / 1e9:.1f} GB, too much for memory; use fewer classes, or {IGNORE}"
        )


def _separated(text: str, separator: str | None, in_list: bool) -> Parts:
    parts = [part.strip() for part in (text.split(separator) if separator else [text])]
    if not in_list:
        while parts and not parts[-1]:
            parts.pop()
        while parts and not parts[0]:
            parts.pop(0)
    if not all(parts):
        raise ValueError("an empty label between others")
    return tuple(parts)


def _repeats(parts_U: Sequence[Parts]) -> bool:
    return any(len(set(parts)) < len(parts) for parts in parts_U)


def _are_one_hot_pairs(parts_U: Sequence[Parts]) -> bool:
    """Whether lists of 0 and 1 are one-hot labels of two classes, not the classes 0 and 1."""
    orders = {tuple(BITS[part] for part in parts) for parts in parts_U}
    return orders == {(False, True), (True, False)}


def _labels_from_bits(
    parts_U: Sequence[Parts], length_U: np.ndarray, title: str, names: Sequence[str] | None
) -> np.ndarray:
    few, most = int(length_U.min()), int(length_U.max())
    if few != most or (names is not None and most != len(names)):
        classes = f"{len(names)} classes" if names is not None else "classes"
        lengths = f"{few} to {most}" if few != most else f"{most}"
        raise UserError(
            f"{title}: its labels are lists of {lengths} values 0 and 1, which are neither one for "
            f"each of the {classes} nor distinct class numbers; correct them, or {IGNORE}"
        )
    return np.array([[BITS[part] for part in parts] for parts in parts_U], dtype=bool)
