"""Check labels before anything is trained, so that no probe rejects them afterwards."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from ssdistill.data.labels import IGNORE
from ssdistill.errors import UserError, shown
from ssdistill.evaluate.multi_label import counted

NAMED = 10
"""Classes that are named with their counts; of more, only the first few are named."""

MARKS = ("|", ";", ",")
"""Usual separators of several labels."""


def look_at_labels(train: Any, test: Any) -> str:
    """Check the labels of both splits and describe the class counts.

    Args:
        train, test: with ``labels``, (N,) integers or (N, K) truth values, and ``class_names`` by
            label or None.

    Returns:
        one line.

    Raises:
        UserError: fewer than two classes, test classes without training images, what
            :func:`check_pair` refuses, or whatever the labels raise.
    """
    train_N, test_N, names = train.labels, test.labels, train.class_names
    check_pair(train_N, test_N, names)
    if np.ndim(train_N) == 2:
        return _look_at_several(train_N, test_N, names)
    classes_K, counts_K = np.unique(train_N, return_counts=True)
    if len(classes_K) < 2:
        only = ", ".join(_named(classes_K, names)) or "none"
        raise UserError(
            f"data: the training labels have a single class ({only}), but a probe requires two; "
            f"correct them, or {IGNORE}"
        )
    unknown = np.setdiff1d(test_N, classes_K)
    if len(unknown):
        listed = _few(_named(unknown, names))
        raise UserError(
            f"data: the test labels have classes without training images ({listed}); "
            f"add training images of them, remove them, or {IGNORE}"
        )
    tested_K = np.array([(test_N == label).sum() for label in classes_K])
    return _summary(_named(classes_K, names), counts_K, tested_K) + _joined_names(names)


def excluded_classes(train: Any, test: Any) -> str:
    """Name the classes that are excluded from means, in one line; empty if there are none."""
    names = train.class_names
    _, left_out = counted(np.asarray(test.labels), np.asarray(train.labels), names)
    return f"excluded from means over classes: {left_out}" if left_out else ""


def _joined_names(names: Sequence[str] | None) -> str:
    """Return a hint if a class name consists of others, such as ``cat|dog``, or is a list."""
    known = set(names or ())
    if lists := [name for name in sorted(known) if name[:1] == "[" and name[-1:] == "]"]:
        return (
            f"; '{shown(lists[0])}' is a list, read as the name of a class: if images have several "
            "labels, write a|b and set data.label_separator='|', or store lists in Parquet"
        )
    for mark in MARKS:
        for name in known:
            parts = [part.strip() for part in name.split(mark)]
            if len(parts) > 1 and known.issuperset(parts):
                return (
                    f"; '{shown(name)}' consists of other classes: if images have several labels, "
                    f"set data.label_separator='{mark}', or store lists"
                )
    return ""


def has_several(split: Any) -> bool:
    """Whether images of a split may have several labels; False of a split without labels."""
    try:
        labels = np.asarray(getattr(split, "labels", None))
    except UserError:
        return False
    # A column of whole numbers holds one label per image.
    return labels.ndim == 2 and (labels.shape[1] > 1 or labels.dtype == bool)


def check_pair(train: Any, test: Any, names: Sequence[str] | None = None) -> None:
    """Check that the labels of training and test images match.

    Args:
        train, test: (N,) integers, or (N, K) truth values; numpy or torch.
        names: of the classes, if known.

    Raises:
        UserError: one label per image in one split and several in the other, different classes,
            one-hot labels, or no class with training and test images.
    """
    kinds, shapes = [np.ndim(train), np.ndim(test)], [tuple(train.shape), tuple(test.shape)]
    if kinds == [1, 1]:
        return
    if kinds != [2, 2]:
        words = ["several" if kind == 2 else "one" for kind in kinds]
        raise UserError(
            f"data: training images have {words[0]} label{'s' * (kinds[0] == 2)} each "
            f"({_shape(shapes[0])}), but test images {words[1]} ({_shape(shapes[1])}); use one "
            f"kind of labels, or {IGNORE}"
        )
    if shapes[0][1] != shapes[1][1] or (names is not None and len(names) != shapes[0][1]):
        named = f", class_names {len(names)}" if names is not None else ""
        raise UserError(
            f"data: the training labels have {shapes[0][1]} classes, the test labels "
            f"{shapes[1][1]}{named}; use the same classes, or {IGNORE}"
        )
    train_NK, test_NK = np.asarray(train), np.asarray(test)
    if train_NK.shape[1] > 1 and all((x.sum(1) == 1).all() for x in (train_NK, test_NK)):
        raise UserError(
            "data: the labels are one-hot, one class per image; store labels.argmax(axis=1) "
            f"instead, or {IGNORE}"
        )
    counted(test_NK, train_NK, names)


def labels_digest(train: Any, test: Any) -> str:
    """Return the SHA-256 of the labels of two splits, (N,) or (N, K) each."""
    digest = hashlib.sha256()
    for split in (train, test):
        labels = np.asarray(split.labels)
        if labels.ndim == 2:
            digest.update(f"{labels.shape[0]} x {labels.shape[1]}\n".encode())
            digest.update(np.ascontiguousarray(labels, dtype=bool).data)
            continue
        labels_N = np.ascontiguousarray(labels, dtype="<i8")
        digest.update(len(labels_N).to_bytes(8, "little"))
        digest.update(labels_N.tobytes())
    return digest.hexdigest()


def _look_at_several(train_NK: np.ndarray, test_NK: np.ndarray, names: Any) -> str:
    """Describe labels of images that may have several."""
    both_NK = np.concatenate([train_NK, test_NK])
    without = int((~both_NK.any(1)).sum())
    shown_names = _named(np.arange(both_NK.shape[1]), names)
    line = _summary(shown_names, train_NK.sum(0), test_NK.sum(0))
    line += f"; {both_NK.sum(1).mean():.3g} labels per image"
    return line + (f", {without} images without labels" if without else "")


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _summary(names: Sequence[str], counts_K: np.ndarray, tested_K: np.ndarray) -> str:
    if len(names) <= NAMED:
        pairs = zip(names, counts_K, tested_K, strict=True)
        listed = ", ".join(f"{name}: {count}+{tested}" for name, count, tested in pairs)
        return f"{len(names)} classes (training+test images): {listed}"
    return (
        f"{len(names)} classes of {_span(counts_K)} training and {_span(tested_K)} test images: "
        f"{_few(names)}"
    )


def _span(counts_K: np.ndarray) -> str:
    low, high = counts_K.min(), counts_K.max()
    return str(low) if low == high else f"{low} to {high}"


def _named(labels: np.ndarray, names: Sequence[str] | None) -> list[str]:
    name_by_label = {} if names is None else dict(enumerate(names))
    return [shown(name_by_label.get(int(label), label)) for label in labels]


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
