"""Validate labels: one class per image, a whole number from 0, or 0 or 1 for each class."""

from typing import Any

import numpy as np

from ssdistill.errors import UserError

IGNORE = "set data.labels=none to ignore them"


def class_labels(labels: Any, name: str, count: int | None = None) -> np.ndarray:
    """Return labels as (N,) int64, or as (N, K) bool if images have 0 or 1 for each of K classes.

    A column (N, 1) is flattened; floats without a fractional part are converted.

    Args:
        labels: an array, or a sequence.
        name: their name in messages, a plural.
        count: number of images, if known.

    Raises:
        UserError: text, Python objects, a number of labels other than ``count``, or values that
            are not whole numbers from 0 or, with several per image, not 0 or 1.
    """
    values = np.asarray(labels)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    facts = f"they are {values.dtype} of shape {' x '.join(map(str, values.shape)) or '()'}"
    if values.ndim not in (1, 2) or len(values) != (len(values) if count is None else count):
        images = "each image" if count is None else f"each of the {count} images"
        raise UserError(
            f"{name} must be one whole number for {images}, or 0 or 1 for each class, but {facts}; "
            f"correct them, or {IGNORE}"
        )
    return _as_integers(values, name, facts) if values.ndim == 1 else _several(values, name, facts)


def _several(values: np.ndarray, name: str, facts: str) -> np.ndarray:
    if values.dtype == bool and values.shape[1]:
        return values
    wrong = np.zeros(0, dtype=bool)
    if values.dtype.kind in "iuf" and values.shape[1]:
        wrong = (values != 0) & (values != 1)
        if not wrong.any():
            return values.astype(bool)
    detail = ""
    if wrong.any():
        image, column = np.unravel_index(int(wrong.argmax()), wrong.shape)
        detail = (
            f", and {int(wrong.sum())} are neither (first: {values[image, column]} of image "
            f"{image}, class {column})"
        )
    raise UserError(
        f"{name} must be 0 or 1 for each class where there are several per image, but "
        f"{facts}{detail}; correct them, or {IGNORE}"
    )


def _as_integers(values: np.ndarray, name: str, facts: str) -> np.ndarray:
    if values.dtype.kind not in "biuf":
        raise UserError(
            f"{name} must be one whole number per image ({len(values)} images), but {facts}; "
            f"number the classes from 0 (store their names in class_names), or {IGNORE}"
        )
    if values.dtype.kind == "b":
        return values.astype(np.int64)
    if values.dtype.kind == "f":
        broken = ~np.isfinite(values)
        fractions = ~broken & (values != np.floor(np.where(broken, 0, values)))
        for wrong, problem in ((broken, "NaN or infinite"), (fractions, "fractions")):
            if wrong.any():
                first = int(wrong.argmax())
                raise UserError(
                    f"{name} must be whole numbers, but {int(wrong.sum())} of {len(values)} are "
                    f"{problem} (first: {values[first]} of image {first}, {values.dtype}); "
                    f"correct them, or {IGNORE}"
                )
    if len(values) and values.max() >= 2**63:
        raise UserError(
            f"{name} must be below 2**63, got {values.max()}; correct them, or {IGNORE}"
        )
    if len(values) and values.min() < 0:
        negative = int((values < 0).sum())
        raise UserError(
            f"{name} must be whole numbers from 0, but {negative} of {len(values)} are negative "
            f"(smallest: {values.min()}, which often means unlabeled); remove those images, or "
            f"{IGNORE}"
        )
    return values.astype(np.int64)
