"""Metrics for several labels per image, with a confidence interval."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ssdistill.errors import UserError, shown
from ssdistill.evaluate.average_precision import average_precisions, mean_interval

NAMED = 5
"""Number of excluded classes that are named."""
THRESHOLD = 0.5
"""Labels with higher scores are predicted."""


@dataclass(frozen=True, eq=False)
class MultiLabel:
    """Scores of all classes on the test images, and their metrics in percent.

    A class without training or test images has no average precision (NaN) and is excluded from all
    means; ``left_out`` names it.

    Attributes:
        targets_NK: whether each test image has each label.
        scores_NK: probability of every label, or its fraction of the votes.
        average_precision_K, precision_K, recall_K, f1_K: by class; the last three for scores
            above one half.
        map: mean average precision over the classes ("macro").
        map_low, map_high: its 95 % interval, and ``map_stderr`` its standard error: a bootstrap
            over the test images, see :func:`ssdistill.evaluate.average_precision.mean_interval`.
        micro_map: average precision of all pairs of image and class, as one ranking.
        macro_f1: mean of the classes' F1; micro_f1: F1 of all pairs of image and class.
        left_out: the excluded classes, and why; empty if all count.
        class_names: by class, if the data has names.
    """

    targets_NK: np.ndarray = field(repr=False)
    scores_NK: np.ndarray = field(repr=False)
    average_precision_K: np.ndarray = field(repr=False)
    precision_K: np.ndarray = field(repr=False)
    recall_K: np.ndarray = field(repr=False)
    f1_K: np.ndarray = field(repr=False)
    map: float
    map_stderr: float
    map_low: float
    map_high: float
    micro_map: float
    macro_f1: float
    micro_f1: float
    left_out: str = ""
    class_names: tuple[str, ...] | None = field(default=None, repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes; their numbers if they have none."""
        return self.class_names or tuple(map(str, range(self.targets_NK.shape[1])))

    @property
    def measures(self) -> dict[str, float]:
        """Metrics to record, by short names."""
        names = ("map", "map_stderr", "map_low", "map_high", "micro_map", "macro_f1", "micro_f1")
        return {name: getattr(self, name) for name in names}

    def by_class(self) -> list[dict[str, Any]]:
        """One row per class: label, name, test images, average precision, precision, recall, F1.

        In percent; None if undefined.
        """
        columns = {
            "average_precision": self.average_precision_K,
            "precision": self.precision_K,
            "recall": self.recall_K,
            "f1": self.f1_K,
        }
        count_K = self.targets_NK.sum(0)
        return [
            {"class": k, "name": name, "images": int(count_K[k])}
            | {key: None if np.isnan(row[k]) else float(row[k]) for key, row in columns.items()}
            for k, name in enumerate(self.names)
        ]


def multi_label_metrics(
    targets_NK: Any,
    scores_NK: Any,
    *,
    trained_NK: Any = None,
    class_names: Sequence[str] | None = None,
    seed: int = 0,
) -> MultiLabel:
    """Compute the metrics of scores for several labels per image.

    Args:
        targets_NK: whether each test image has each label; like all arguments, NumPy or torch.
        scores_NK: of every label, from 0 to 1.
        trained_NK: the same for the training images; classes that none of them has are excluded.
        class_names: by class.
        seed: of the bootstrap.

    Raises:
        UserError: scores are not finite or of another shape, or all classes are excluded.
    """
    targets_NK = np.asarray(targets_NK, dtype=bool)
    scores_NK = np.asarray(scores_NK, dtype=np.float64)
    if targets_NK.ndim != 2 or scores_NK.shape != targets_NK.shape or not targets_NK.size:
        raise UserError(
            f"scores must have the shape of the labels, {targets_NK.shape}, got {scores_NK.shape}"
        )
    if not np.isfinite(scores_NK).all():
        raise UserError("scores are NaN or infinite; pass probabilities")
    trained_NK = None if trained_NK is None else np.asarray(trained_NK, dtype=bool)
    counts_K, left_out = counted(targets_NK, trained_NK, class_names)
    own_NC, score_NC = targets_NK[:, counts_K], scores_NK[:, counts_K]
    ap_K, precision_K, recall_K, f1_K = np.full((4, len(counts_K)), np.nan)
    ap_K[counts_K] = 100 * average_precisions(own_NC, score_NC)
    predicted_NC = score_NC > THRESHOLD
    hit_C, predicted_C, own_C = (x.sum(0) for x in (predicted_NC & own_NC, predicted_NC, own_NC))
    recall_K[counts_K] = 100 * hit_C / own_C
    precision_K[counts_K] = np.where(
        predicted_C > 0, 100 * hit_C / np.maximum(predicted_C, 1), np.nan
    )
    f1_K[counts_K] = 200 * hit_C / (predicted_C + own_C)
    interval = mean_interval(own_NC, score_NC, seed)
    micro = average_precisions(own_NC.reshape(-1, 1), score_NC.reshape(-1, 1))
    return MultiLabel(
        targets_NK=targets_NK,
        scores_NK=scores_NK,
        average_precision_K=ap_K,
        precision_K=precision_K,
        recall_K=recall_K,
        f1_K=f1_K,
        map=float(ap_K[counts_K].mean()),
        map_stderr=interval.error,
        map_low=interval.low,
        map_high=interval.high,
        micro_map=100 * float(micro[0]),
        macro_f1=float(f1_K[counts_K].mean()),
        micro_f1=200 * float(hit_C.sum() / (predicted_C + own_C).sum()),
        left_out=left_out,
        class_names=tuple(class_names) if class_names else None,
    )


def counted(
    targets_NK: np.ndarray, trained_NK: np.ndarray | None, class_names: Sequence[str] | None
) -> tuple[np.ndarray, str]:
    """Return which classes have training and test images, (K,) bool, and a note on the others.

    Raises:
        UserError: no class has both.
    """
    tested_K = np.asarray(targets_NK.any(0))
    trained_K = np.ones_like(tested_K) if trained_NK is None else np.asarray(trained_NK.any(0))
    names = class_names or [str(k) for k in range(len(tested_K))]
    reasons = (
        ("training", ~trained_K & tested_K),
        ("test", trained_K & ~tested_K),
        ("training or test", ~trained_K & ~tested_K),
    )
    words = [
        f"{', '.join(shown(names[k]) for k in np.flatnonzero(without_K)[:NAMED])}"
        f"{', …' if without_K.sum() > NAMED else ''} "
        f"({int(without_K.sum())} without {split} images)"
        for split, without_K in reasons
        if without_K.any()
    ]
    if not (trained_K & tested_K).any():
        raise UserError("data: no class has both training and test images; correct the labels")
    return trained_K & tested_K, "; ".join(words)
