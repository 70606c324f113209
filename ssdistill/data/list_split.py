"""A split of a list, whose labels and weights are read on demand."""

import re
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ssdistill.data.file_split import FileSplit
from ssdistill.data.labels import IGNORE, class_labels
from ssdistill.data.names import Names
from ssdistill.data.parquet_rows import BETWEEN
from ssdistill.errors import UserError, shown

WHOLE = re.compile(r"[+-]?\d{1,18}")


class ListClasses:
    """Classes of all rows of a list, read on first use.

    Args:
        rows: returns the label of each row, as text.
        name: returns the name of image i of the list, for messages.
        title: of the list in messages.
        used_N: (N,) bool, the rows whose images are in a split.
        separator: between several labels of one image.
    """

    def __init__(
        self,
        rows: Callable[[], Any],
        name: Callable[[int], str],
        title: str,
        used_N: np.ndarray,
        separator: str | None,
    ):
        self._rows, self._name, self._title = rows, name, title
        self._used_N, self._separator = used_N, separator
        self._classes: tuple[np.ndarray, tuple[str, ...] | None] | None = None

    @property
    def names(self) -> tuple[str, ...] | None:
        """Names by label; None for numeric labels, and before labels are read."""
        return self._classes[1] if self._classes else None

    def labels(self) -> np.ndarray:
        """Return the label of each row, (N,) int64, or -1 for rows in no split.

        Raises:
            UserError: an image has no label, or several.
        """
        if self._classes is None:
            self._classes = self._read()
        return self._classes[0]

    def _read(self) -> tuple[np.ndarray, tuple[str, ...] | None]:
        codes, position = array("i"), dict[str, int]()
        for (text,) in self._rows():
            codes.append(position.setdefault(text, len(position)))
        code_N = np.frombuffer(codes, dtype=np.int32)
        if len(code_N) != len(self._used_N):
            raise UserError(f"{self._title} has changed since it was read; run the command again")
        used = np.unique(code_N[self._used_N]).tolist()
        texts = list(position)
        label_of = {code: self._single(texts[code], code, code_N) for code in used}
        value_K = np.full(len(texts), -1, dtype=np.int64)
        names = None
        numbers = _numbers(list(label_of.values()))
        if numbers is not None:
            value_K[used] = class_labels(numbers, f"{self._title}: its labels")
        else:
            names = tuple(sorted(set(label_of.values())))
            order = {name: k for k, name in enumerate(names)}
            value_K[used] = [order[label] for label in label_of.values()]
        return value_K[code_N], names

    def _single(self, text: str, code: int, code_N: np.ndarray) -> str:
        """Return the only label in a text; raise UserError if there are none or several."""
        marks = [BETWEEN] if self._separator is None else [BETWEEN, self._separator]
        parts = [text]
        for mark in marks:
            parts = [piece for part in parts for piece in part.split(mark)]
        parts = [part.strip() for part in parts if part.strip()]
        if len(parts) == 1:
            return parts[0]
        rows = np.flatnonzero((code_N == code) & self._used_N)
        first = shown(self._name(int(rows[0])))
        if not parts:
            raise UserError(
                f"{self._title}: {len(rows)} of {int(self._used_N.sum())} images have no label "
                f"(first: {first}); add labels, remove these images, or {IGNORE}"
            )
        raise UserError(
            f"{self._title}: some images have several labels (first: {first}, "
            f"{shown(', '.join(parts))[:80]}); multi-label evaluation is not supported; {IGNORE}"
        )


def _numbers(texts: list[str]) -> np.ndarray | None:
    """Return labels as numbers if all are numeric; None for names."""
    if all(WHOLE.fullmatch(text) for text in texts):
        return np.array([int(text) for text in texts], dtype=np.int64)
    try:
        return np.array([float(text) for text in texts])
    except ValueError:
        return None


class ListSplit(FileSplit):
    """Images of a list.

    Args:
        title: name of the split in messages.
        root: folder that relative paths start from.
        names: paths of the images.
        row_N: (N,) their rows in the list.
        classes: of all rows of the list; None if unlabeled.
        weights: returns the weight of each row of the list, as text; None if there are none.
    """

    def __init__(
        self,
        title: str,
        root: Path,
        names: Names,
        row_N: np.ndarray,
        classes: ListClasses | None,
        weights: Callable[[], Any] | None = None,
    ):
        super().__init__(title, [(root, names)], None, ())
        self.row_N, self._classes, self._weights = row_N, classes, weights

    @property
    def labeled(self) -> bool:
        return self._classes is not None

    def labels(self) -> np.ndarray:
        if self._classes is None:
            return super().labels()
        return self._classes.labels()[self.row_N]

    @property
    def class_names(self) -> tuple[str, ...] | None:
        return self._classes.names if self._classes else None

    def weights(self) -> np.ndarray | None:
        """Return the weights of images, (N,) float64; None if the list has none.

        Raises:
            UserError: a weight is negative, or not a finite number.
        """
        if self._weights is None:
            return None
        weights = array("d")
        for number, (text,) in enumerate(self._weights()):
            try:
                weights.append(float(text))
            except ValueError:
                weights.append(-1.0)
            if not 0 <= weights[-1] < float("inf"):
                raise UserError(
                    f"{self.title}: the weight {shown(text)[:40]!r} in row {number + 1} must be a "
                    "non-negative number; correct it, or set data.weight_column=none"
                )
        return np.frombuffer(weights, dtype=np.float64)[self.row_N]
