"""Check labels before anything is trained, so that no probe rejects them afterwards."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from ssdistill.data.labels import IGNORE
from ssdistill.errors import UserError, shown

NAMED = 10
"""Classes that are named with their counts; of more, only the first few are named."""


def look_at_labels(train: Any, test: Any) -> str:
    """Check the labels of both splits and describe the class counts.

    Args:
        train, test: with ``labels``, (N,) integers, and ``class_names`` by label or None.

    Returns:
        one line.

    Raises:
        UserError: fewer than two classes, test classes that training lacks, or whatever the
            labels raise.
    """
    train_N, test_N, names = train.labels, test.labels, train.class_names
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
    return _summary(_named(classes_K, names), counts_K, tested_K)


def labels_digest(train: Any, test: Any) -> str:
    """sha256 of the labels of two splits, (N,) each."""
    digest = hashlib.sha256()
    for split in (train, test):
        labels_N = np.ascontiguousarray(split.labels, dtype="<i8")
        digest.update(len(labels_N).to_bytes(8, "little"))
        digest.update(labels_N.tobytes())
    return digest.hexdigest()


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
