"""Average precision of each class, and a confidence interval of the mean.

Unlike scikit-learn, which takes one class at a time, this sorts the images of each class only once
for thousands of resamples.
"""

from dataclasses import dataclass

import numpy as np

from ssdistill.evaluate.intervals import CONFIDENCE, RESAMPLES

NUMBERS = 2**31
"""Maximum of images times classes times resamples; fewer resamples are drawn beyond it."""
FEWEST = 200
"""Minimum number of resamples."""
AT_ONCE = 2**22
"""Number of weights of resampled images in memory at a time (16 MiB)."""


@dataclass(frozen=True)
class MeanInterval:
    """95 % interval and standard error of a mean over classes, in percent."""

    low: float
    high: float
    error: float


class _Ranking:
    """Images by descending score for one class.

    Attributes:
        order_N: images, highest score first.
        hit_P: ranks of the images of the class.
        last_P: for each of those, the last rank with an equal score.
    """

    def __init__(self, target_N: np.ndarray, score_N: np.ndarray):
        self.order_N = np.argsort(-score_N, kind="stable")
        falling_N = score_N[self.order_N]
        ends = np.append(np.flatnonzero(np.diff(falling_N)), len(falling_N) - 1)
        self.hit_P = np.flatnonzero(target_N[self.order_N])
        self.last_P = ends[np.searchsorted(ends, self.hit_P)]

    def average_precision(self, weight_RN: np.ndarray) -> np.ndarray:
        """Return the average precision (R,) of weighted images; NaN without positives."""
        ranked_RN = weight_RN[:, self.order_N]
        own_RN = np.zeros_like(ranked_RN)
        own_RN[:, self.hit_P] = ranked_RN[:, self.hit_P]
        weight_RP = ranked_RN[:, self.hit_P]
        found_RP = own_RN.cumsum(1)[:, self.last_P]
        seen_RP = ranked_RN.cumsum(1)[:, self.last_P]
        sums_R = (weight_RP * found_RP / np.maximum(seen_RP, 1)).sum(1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return sums_R / weight_RP.sum(1)


def average_precisions(targets_NK: np.ndarray, scores_NK: np.ndarray) -> np.ndarray:
    """Return the average precision (K,) of each class, from 0 to 1; NaN without positives.

    The sum over thresholds n of (R_n - R_(n-1)) P_n, with recall R and precision P among the
    images that score as high (Zhu 2004, "Recall, precision and average precision"), as
    in scikit-learn's ``average_precision_score``, without the interpolation of the first PASCAL VOC
    challenges.

    Args:
        targets_NK: whether each image has each label.
        scores_NK: higher for more likely labels.
    """
    once_1N = np.ones((1, len(targets_NK)))
    return np.array([
        _Ranking(target_N, score_N).average_precision(once_1N)[0]
        for target_N, score_N in zip(targets_NK.T, scores_NK.T, strict=True)
    ])  # fmt: skip


def mean_interval(targets_NK: np.ndarray, scores_NK: np.ndarray, seed: int = 0) -> MeanInterval:
    """Return the 95 % interval of the mean average precision: percentiles of a bootstrap.

    Images are resampled (Efron 1979, doi:10.1214/aos/1176344552), with all their labels; classes
    without positives in a resample are excluded from its mean. There are 2,000 resamples, fewer
    for very many images and classes. A perfect ranking is perfect in every resample, so its
    interval has zero width.

    Args:
        targets_NK, scores_NK: see :func:`average_precisions`.
        seed: of the resamples.
    """
    images, classes = targets_NK.shape
    resamples = int(np.clip(NUMBERS // (images * classes), FEWEST, RESAMPLES))
    rankings = [_Ranking(*pair) for pair in zip(targets_NK.T, scores_NK.T, strict=True)]
    generator, means = np.random.default_rng(seed), []
    size = max(1, AT_ONCE // images)
    for start in range(0, resamples, size):
        drawn_RN = generator.integers(images, size=(min(size, resamples - start), images))
        counts = [np.bincount(drawn_N, minlength=images) for drawn_N in drawn_RN]
        weight_RN = np.array(counts, dtype=np.float32 if images < 2**24 else np.float64)
        found_KR = np.array([ranking.average_precision(weight_RN) for ranking in rankings])
        known_KR = np.isfinite(found_KR)
        count_R = known_KR.sum(0)
        sums_R = np.where(known_KR, found_KR, 0).sum(0)
        means.append(sums_R[count_R > 0] / count_R[count_R > 0])
    mean_R = 100 * np.concatenate(means)
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(mean_R, [tail, 100 - tail])
    return MeanInterval(float(low), float(high), float(mean_R.std()))
