"""A split of a list, whose labels and weights are read on demand."""

from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ssdistill.data.file_split import FileSplit
from ssdistill.data.labels import IGNORE, class_labels
from ssdistill.data.names import Names
from ssdistill.data.several_labels import (
    BETWEEN,
    BITS,
    are_several,
    joined,
    multi_hot,
    numbers_of,
    parts_of,
    rows_of,
)
from ssdistill.errors import UserError, shown


class ListClasses:
    """Classes of all rows of a list, read on first use.

    If any image has several labels, all images have a truth value for each class, and images
    without labels have rows of zeros. The same holds for columns of classes, unless each image
    is in exactly one class.

    Args:
        rows: returns the label of each row, as text; with ``columns``, one text for each.
        name: returns the name of image i of the list, for messages.
        title: of the list in messages.
        used_N: (N,) bool, the rows whose images are in a split.
        separator: between several labels of one image.
        columns: of 0 and 1, if each class has one; their names are those of the classes.
        names: of the classes, by number, if known.
    """

    def __init__(
        self,
        rows: Callable[[], Any],
        name: Callable[[int], str],
        title: str,
        used_N: np.ndarray,
        separator: str | None,
        columns: tuple[str, ...] | None = None,
        names: tuple[str, ...] | None = None,
    ):
        self._rows, self._name, self._title = rows, name, title
        self._used_N, self._separator = used_N, separator
        self._columns, self._all_names = columns, names
        self._classes: tuple[np.ndarray, tuple[str, ...] | None] | None = None

    @property
    def names(self) -> tuple[str, ...] | None:
        """Names by label; None for numeric labels, and before labels are read."""
        return self._classes[1] if self._classes else None

    def labels(self) -> np.ndarray:
        """Return the label of each row, (N,) int64, or -1 for rows in no split; or (N, K) bool.

        Raises:
            UserError: an image has no label where each must have one, or labels are invalid.
        """
        if self._classes is None:
            self._classes = self._read()
        return self._classes[0]

    def _read(self) -> tuple[np.ndarray, tuple[str, ...] | None]:
        codes, position = array("i"), dict[str, int]()
        for texts in self._rows():
            text = texts[0] if self._columns is None else joined(texts)
            codes.append(position.setdefault(text, len(position)))
        code_N = np.frombuffer(codes, dtype=np.int32)
        if len(code_N) != len(self._used_N):
            raise UserError(f"{self._title} has changed since it was read; run the command again")
        used, texts = np.unique(code_N[self._used_N]).tolist(), list(position)
        if self._columns is not None:
            return self._by_column(texts, used, code_N)
        parts_by_code = {code: self._parts(texts[code], code, code_N) for code in used}
        if any(are_several(texts[code], parts) for code, parts in parts_by_code.items()):
            value_UK, names = multi_hot(list(parts_by_code.values()), self._title, self._all_names)
            return self._spread(value_UK, used, len(texts), code_N), names
        for code, parts in parts_by_code.items():
            if not parts:
                raise self._no_label(code, code_N)
        label_of = {code: parts[0] for code, parts in parts_by_code.items()}
        value_K = np.full(len(texts), -1, dtype=np.int64)
        names = None
        numbers = numbers_of(list(label_of.values()))
        if numbers is not None:
            value_K[used] = class_labels(numbers, f"{self._title}: its labels")
        else:
            names = tuple(sorted(set(label_of.values())))
            order = {name: k for k, name in enumerate(names)}
            value_K[used] = [order[label] for label in label_of.values()]
        return value_K[code_N], names

    def _by_column(
        self, texts: list[str], used: list[int], code_N: np.ndarray
    ) -> tuple[np.ndarray, tuple[str, ...]]:
        """Return the labels from columns of 0 and 1, one for each class."""
        assert self._columns is not None
        value_UK = np.zeros((len(used), len(self._columns)), dtype=bool)
        for row, code in enumerate(used):
            cells = texts[code].split(BETWEEN)[1:]
            for k, cell in enumerate(cells):
                if cell not in BITS:
                    raise UserError(
                        f"{self._title}: column '{shown(self._columns[k])}' has {shown(cell)!r} "
                        f"for {self._first(code, code_N)}, which is neither 0 nor 1; correct "
                        f"it, or {IGNORE}"
                    )
                value_UK[row, k] = BITS[cell]
        if (value_UK.sum(1) == 1).all():
            value_C = np.full(len(texts), -1, dtype=np.int64)
            value_C[used] = value_UK.argmax(1)
            return value_C[code_N], self._columns
        return self._spread(value_UK, used, len(texts), code_N), self._columns

    def _spread(
        self, value_UK: np.ndarray, used: list[int], count: int, code_N: np.ndarray
    ) -> np.ndarray:
        value_CK = np.zeros((count, value_UK.shape[1]), dtype=bool)
        value_CK[used] = value_UK
        return rows_of(value_CK, code_N, self._title)

    def _parts(self, text: str, code: int, code_N: np.ndarray) -> tuple[str, ...]:
        """Return the labels in a text."""
        try:
            return parts_of(text, self._separator)
        except ValueError as error:
            labels = shown(text.replace(BETWEEN, ", ").removeprefix(", "))[:80]
            raise UserError(
                f"{self._title}: the labels of {self._first(code, code_N)} ({labels}) have "
                f"{error}; correct them, or {IGNORE}"
            ) from error

    def _no_label(self, code: int, code_N: np.ndarray) -> UserError:
        """Return the error that images with a text have no label."""
        count = int(((code_N == code) & self._used_N).sum())
        return UserError(
            f"{self._title}: {count} of {int(self._used_N.sum())} images have no label "
            f"(first: {self._first(code, code_N)}); add labels, remove these images, or {IGNORE}"
        )

    def _first(self, code: int, code_N: np.ndarray) -> str:
        """Return the name of the first image with a text."""
        return shown(self._name(int(np.flatnonzero((code_N == code) & self._used_N)[0])))


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
                weights.append(float(text.replace("_", "x")))  # Python reads 1_0 as 10
            except ValueError:
                weights.append(-1.0)
            if not 0 <= weights[-1] < float("inf"):
                raise UserError(
                    f"{self.title}: the weight {shown(text)[:40]!r} in row {number + 1} must be a "
                    "non-negative number; correct it, or set data.weight_column=none"
                )
        return np.frombuffer(weights, dtype=np.float64)[self.row_N]
