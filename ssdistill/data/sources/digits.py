"""The digits included in scikit-learn, for experiments and tests without downloads."""

import hashlib
from functools import cache
from typing import Any, cast

import numpy as np

from ssdistill.data.array_split import ArraySplit
from ssdistill.data.splits import SPLITS, RawSplit, Source


class Digits(Source):
    """scikit-learn's 1797 handwritten digits, 8x8 gray: 1297 to train, 500 to test."""

    kind = "digits"
    default_image_size = 16
    default_recipe = "digits"
    description = "scikit-learn digits, 8x8 gray, 10 classes"

    def _split(self, name: str) -> RawSplit:
        images, targets, *parts = _digits()
        rows = np.sort(parts[SPLITS.index(name)])
        # Gray values range from 0 to 16.
        pixels = np.rint(images[rows] * (255 / 16)).astype(np.uint8)
        identity = hashlib.sha256(pixels.tobytes()).hexdigest()
        return ArraySplit(
            f"digits {name}", identity, lambda: pixels, lambda: targets[rows], lambda: range(10)
        )


@cache
def _digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return images (N, 8, 8), targets (N,), and the rows of training and test images."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits: Any = load_digits()
    rows = np.arange(len(digits.images))
    parts = train_test_split(rows, test_size=500, stratify=digits.target, random_state=0)
    train_rows, test_rows = cast("list[np.ndarray]", parts)
    return digits.images, digits.target, train_rows, test_rows
