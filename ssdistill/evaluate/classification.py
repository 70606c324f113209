"""Classification metrics from predictions on the test images, with intervals."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ssdistill.errors import UserError
from ssdistill.evaluate.intervals import balanced_interval, binomial_error, binomial_interval

BINS = 15
"""Of the calibration error (Guo et al., arXiv:1706.04599)."""


@dataclass(frozen=True, eq=False)
class Classification:
    """Predictions on one test set and their metrics, in percent.

    A class that never occurs in the test images has no recall (NaN) and is excluded from the
    balanced accuracy. One that is never answered has no precision (NaN), which counts as 0 in
    the macro mean; one that neither occurs nor is answered is excluded from the macro means.

    Attributes:
        classes: labels, (K,); rows and columns of what follows are in this order.
        targets, predictions: label of every test image, true and answered, (N,).
        confusion_KK: images by true class (rows) and answered class (columns).
        top1, top5: accuracy; top5 is 100 with five classes or fewer, None where only one answer
            per image is known. Of equally probable classes the first comes first, and one of
            probability 0 is never among the five.
        top1_low, top1_high: 95 % interval of ``top1``: percentiles of its bootstrap over the
            test images, see :func:`ssdistill.evaluate.intervals.binomial_interval`.
        balanced_accuracy: mean recall of the classes that occur.
        balanced_accuracy_low, balanced_accuracy_high: its 95 % interval, images resampled
            within their class.
        precision_K, recall_K, f1_K: by class.
        macro_precision, macro_f1: means over the classes that occur or are answered.
        calibration_error: expected calibration error in 15 equal bins of the confidence
            (arXiv:1706.04599, eq. 3); None without probabilities.
        class_names: by class, where the data has names.
    """

    classes: np.ndarray = field(repr=False)
    targets: np.ndarray = field(repr=False)
    predictions: np.ndarray = field(repr=False)
    confusion_KK: np.ndarray = field(repr=False)
    top1: float
    top5: float | None
    top1_low: float
    top1_high: float
    balanced_accuracy: float
    balanced_accuracy_low: float
    balanced_accuracy_high: float
    precision_K: np.ndarray = field(repr=False)
    recall_K: np.ndarray = field(repr=False)
    f1_K: np.ndarray = field(repr=False)
    macro_precision: float
    macro_f1: float
    calibration_error: float | None
    class_names: tuple[str, ...] | None = field(default=None, repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        """What the classes are called; their labels where they have no names."""
        return self.class_names or tuple(map(str, self.classes.tolist()))

    @property
    def top1_stderr(self) -> float:
        """Binomial standard error of ``top1``."""
        return binomial_error(self.top1, len(self.targets))

    @property
    def measures(self) -> dict[str, float]:
        """What a record keeps, by short names; without what is not known."""
        names = ("top1", "top5", "top1_stderr", "top1_low", "top1_high", "balanced_accuracy",
                 "macro_precision", "macro_f1", "calibration_error")  # fmt: skip
        values = {name: getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if value is not None}

    def by_class(self) -> list[dict[str, Any]]:
        """One row per class: label, name, test images, precision, recall and F1 in percent.

        None stands for what is not known: the recall of a class without test images, say.
        """
        count_K = self.confusion_KK.sum(1)
        return [
            {"class": int(label), "name": name, "images": int(count_K[k]),
             "precision": _finite_or_none(self.precision_K[k]),
             "recall": _finite_or_none(self.recall_K[k]),
             "f1": _finite_or_none(self.f1_K[k])}
            for k, (label, name) in enumerate(zip(self.classes, self.names, strict=True))
        ]  # fmt: skip


def classify(
    targets: Any,
    *,
    probabilities_NK: Any = None,
    predictions: Any = None,
    classes: Any = None,
    class_names: tuple[str, ...] | None = None,
    seed: int = 0,
) -> Classification:
    """Compute classification metrics of predictions or probabilities.

    Args:
        targets: true label of every test image, (N,) integers.
        probabilities_NK: probability of every class; the largest is the answer, of equals the
            first. Needed for ``top5`` and ``calibration_error``.
        predictions: answered labels instead, (N,) integers.
        classes: labels in the order of the columns, (K,); by default 0 to K - 1, or every label
            that occurs or is answered.
        class_names: a name for every label from 0 on, of which those of ``classes`` are kept.
        seed: of the bootstrap of the balanced accuracy.

    Raises:
        UserError: no test images, labels that are in no class, probabilities that are none, or
            arrays that do not fit.
    """
    targets = _integers(targets, "test labels")
    if (probabilities_NK is None) == (predictions is None):
        found = "neither was" if predictions is None else "both were"
        raise UserError(
            f"classify: pass exactly one of probabilities and predictions ({found} passed)"
        )
    if probabilities_NK is not None:
        probabilities_NK = _probabilities(probabilities_NK)
        width = probabilities_NK.shape[1]
        classes = _classes(np.arange(width) if classes is None else classes, width)
        answer_N = probabilities_NK.argmax(1)
    else:
        predictions = _integers(predictions, "predictions")
        classes = _classes(np.union1d(targets, predictions) if classes is None else classes)
        answer_N = _position(predictions, classes, "predictions")
    true_N = _position(targets, classes, "test labels")
    if len(true_N) != len(answer_N):
        raise UserError(
            f"{len(answer_N)} predictions for {len(true_N)} test labels; pass one for each label"
        )
    return Classification(
        classes=classes,
        targets=targets,
        predictions=classes[answer_N],
        top5=None if probabilities_NK is None else _top5(probabilities_NK, true_N),
        calibration_error=(
            None if probabilities_NK is None else calibration_error(probabilities_NK, true_N)
        ),
        class_names=_names(class_names, classes),
        **_counted(true_N, answer_N, len(classes), seed),
    )


def _counted(true_N: np.ndarray, answer_N: np.ndarray, size: int, seed: int) -> dict[str, Any]:
    """Metrics that follow from the confusion matrix."""
    confusion_KK = np.bincount(true_N * size + answer_N, minlength=size * size)
    confusion_KK = confusion_KK.reshape(size, size)
    hit_K, true_K, answered_K = confusion_KK.diagonal(), confusion_KK.sum(1), confusion_KK.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision_K, recall_K = 100 * hit_K / answered_K, 100 * hit_K / true_K
        f1_K = 100 * 2 * hit_K / (answered_K + true_K)
    hits, occurs, known = int(hit_K.sum()), true_K > 0, true_K + answered_K > 0
    low, high = binomial_interval(hits, len(true_N))
    balanced_low, balanced_high = balanced_interval(hit_K[occurs], true_K[occurs], seed)
    return {
        "confusion_KK": confusion_KK,
        "top1": 100 * hits / len(true_N),
        "top1_low": low,
        "top1_high": high,
        "balanced_accuracy": float(recall_K[occurs].mean()),
        "balanced_accuracy_low": balanced_low,
        "balanced_accuracy_high": balanced_high,
        "precision_K": precision_K,
        "recall_K": recall_K,
        "f1_K": f1_K,
        "macro_precision": float(np.nan_to_num(precision_K[known]).mean()),
        "macro_f1": float(f1_K[known].mean()),
    }


def calibration_error(probabilities_NK: np.ndarray, true_N: np.ndarray) -> float:
    """Expected calibration error in percent: |accuracy - confidence| in 15 equal bins."""
    confidence_N = probabilities_NK.max(1)
    hit_N = probabilities_NK.argmax(1) == true_N
    bin_N = np.clip(np.ceil(confidence_N * BINS).astype(int) - 1, 0, BINS - 1)
    gap_B = np.bincount(bin_N, hit_N - confidence_N, BINS)
    return 100 * float(np.abs(gap_B).sum()) / len(true_N)


def _top5(probabilities_NK: np.ndarray, true_N: np.ndarray) -> float:
    if probabilities_NK.shape[1] <= 5:
        return 100.0
    # As many classes as are strictly more probable, or equally and earlier, come before it.
    own_N1 = np.take_along_axis(probabilities_NK, true_N[:, None], 1)
    earlier_NK = np.arange(probabilities_NK.shape[1]) < true_N[:, None]
    before_N = ((probabilities_NK > own_N1) | ((probabilities_NK == own_N1) & earlier_NK)).sum(1)
    # Neighbors vote for few classes: one without a vote is no answer, whatever its number.
    return 100 * float(((before_N < 5) & (own_N1[:, 0] > 0)).mean())


def _integers(labels: Any, name: str) -> np.ndarray:
    label_N = np.asarray(labels)
    if label_N.ndim != 1 or len(label_N) == 0 or label_N.dtype.kind not in "iu":
        raise UserError(
            f"{name} must be a non-empty integer array of shape (N,), got {label_N.dtype} "
            f"{label_N.shape}"
        )
    return label_N.astype(np.int64)


def _probabilities(values: Any) -> np.ndarray:
    probability_NK = np.asarray(values, dtype=np.float64)
    if probability_NK.ndim != 2 or 0 in probability_NK.shape:
        raise UserError(
            f"probabilities must be a non-empty array of shape (N, K), got {probability_NK.shape}"
        )
    wrong_N = ~(np.abs(probability_NK.sum(1) - 1) < 1e-3) | (probability_NK < 0).any(1)
    if wrong_N.any():
        raise UserError(
            f"probabilities of {wrong_N.sum()} of {len(probability_NK)} images are negative, "
            "not finite or do not add up to 1; pass the output of a softmax"
        )
    return probability_NK


def _classes(labels: Any, width: int | None = None) -> np.ndarray:
    classes = _integers(labels, "classes")
    if len(np.unique(classes)) != len(classes):
        raise UserError("classes contain a label twice; list each label once")
    if width not in (None, len(classes)):
        raise UserError(
            f"{len(classes)} classes, but {width} probabilities per image; name {width}"
        )
    return classes


def _position(labels: np.ndarray, classes: np.ndarray, name: str) -> np.ndarray:
    order = np.argsort(classes)
    place = np.clip(np.searchsorted(classes, labels, sorter=order), 0, len(classes) - 1)
    position = order[place]
    if (unknown := np.unique(labels[classes[position] != labels])).size:
        shown = ", ".join(map(str, unknown[:5].tolist()))
        raise UserError(f"{name} contain unknown classes: {shown}; add them to classes")
    return position


def _names(names: tuple[str, ...] | None, classes: np.ndarray) -> tuple[str, ...] | None:
    if names is None or classes.min() < 0 or classes.max() >= len(names):
        return None
    return tuple(names[label] for label in classes)


def _finite_or_none(value: np.floating) -> float | None:
    return None if np.isnan(value) else float(value)
