"""Confidence intervals of accuracies and of paired differences.

Distributions are scipy's. By hand is what neither it nor statsmodels has: Clopper and Pearson's
interval of a number of images that is not whole, and Tango's of a paired difference.
"""

import numpy as np

CONFIDENCE = 0.95
"""Of every interval that is shown."""
NORMAL = 1.96
"""Half-width of a 95 % interval in standard errors."""
RESAMPLES = 2000
"""Of the bootstrap, where its distribution has no closed form."""


def binomial_error(top1: float, n_test: int) -> float:
    """Standard error, in percent, of an accuracy in percent on ``n_test`` images."""
    share = top1 / 100
    return 100 * (share * (1 - share) / n_test) ** 0.5


def binomial_interval(hits: int, total: int) -> tuple[float, float]:
    """95 % percentile bootstrap interval, in percent, of ``hits`` out of ``total``.

    Resampling yes-or-no answers makes a binomial count, so the quantiles are taken from that
    distribution itself. Where all answers are hits, or none is, every resample is the same:
    there it is :func:`exact_interval`.
    """
    from scipy.stats import binom

    if hits in (0, total):
        return exact_interval(hits / total, total)
    tail = (1 - CONFIDENCE) / 2
    low, high = binom.ppf([tail, 1 - tail], total, hits / total)
    return 100 * float(low) / total, 100 * float(high) / total


def exact_interval(fraction: float, total: float) -> tuple[float, float]:
    """95 % interval, in percent, of Clopper and Pearson (1934, Biometrika 26).

    A fraction of 0 or 1 leaves one side only, which is given all 5 % ("rule of three").

    Args:
        fraction: between 0 and 1.
        total: images it was found on; need not be a whole number.
    """
    from scipy.stats import beta

    hits, tail = fraction * total, 1 - CONFIDENCE
    if 0 < fraction < 1:
        tail /= 2
    low = beta.ppf(tail, hits, total - hits + 1) if fraction > 0 else 0.0
    high = beta.ppf(1 - tail, hits + 1, total - hits) if fraction < 1 else 1.0
    return 100 * float(low), 100 * float(high)


def balanced_interval(hit_K: np.ndarray, total_K: np.ndarray, seed: int) -> tuple[float, float]:
    """95 % bootstrap interval, in percent, of the mean over classes of hits / images.

    Images are resampled within their class, which makes a binomial count of every class. Where
    each class has only hits or only misses, resamples do not differ: there it is
    :func:`exact_interval` of as many images as have the same standard error in equal classes.

    Args:
        hit_K: images of every class that were answered right.
        total_K: images of every class, at least one.
        seed: of the resamples.
    """
    fraction_K = hit_K / total_K
    if ((fraction_K == 0) | (fraction_K == 1)).all():
        return exact_interval(float(fraction_K.mean()), len(total_K) ** 2 / (1 / total_K).sum())
    generator = np.random.default_rng(seed)
    resampled_RK = generator.binomial(total_K, fraction_K, (RESAMPLES, len(total_K)))
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(100 * (resampled_RK / total_K).mean(1), [tail, 100 - tail])
    return float(low), float(high)


def difference_interval(
    only_first: int, only_second: int, total: int, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Score interval, in percent, of the difference of two paired fractions.

    Tango (1998, Statistics in Medicine 17:891): the differences that a score test does not
    reject. Unlike the normal approximation it has a width where few images, or none, tell the
    two apart, and its test of "no difference" is McNemar's.

    Args:
        only_first, only_second: images that only the first, or only the second, gets right.
        total: all images, those included on which both are right or both wrong.
        confidence: of the two-sided interval.
    """
    from scipy.stats import norm

    z = float(norm.ppf((1 + confidence) / 2))
    low = _score_limit(only_first, only_second, total, z)
    return 100 * low, -100 * _score_limit(only_second, only_first, total, z)


def _score_limit(first: int, second: int, n: int, z: float) -> float:
    """The smallest difference not rejected.

    Bisected here: scipy's root finders refuse an end at which rounding hides the change of sign.
    """

    def rejected(difference: float) -> bool:
        # Most likely fraction of ``second`` if this were the difference: root of a quadratic.
        a, c = 2 * n, -second * difference * (1 - difference)
        b = -first - second + (2 * n - first + second) * difference
        fraction = (max(b * b - 4 * a * c, 0.0) ** 0.5 - b) / (2 * a)
        variance = max(n * (2 * fraction + difference * (1 - difference)), 0.0)
        return first - second - n * difference > z * variance**0.5

    low, high = -1.0, (first - second) / n
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rejected(middle) else (low, middle)
    return low


def interval_of(metrics: dict[str, float], metric: str) -> tuple[float, float] | None:
    """The 95 % interval of a metric: as found, or from its standard error; None without."""
    low, high = metrics.get(f"{metric}_low"), metrics.get(f"{metric}_high")
    if low is not None and high is not None:
        return low, high
    value, error = metrics.get(metric), metrics.get(f"{metric}_stderr")
    if value is None or error is None:
        return None
    return value - NORMAL * error, value + NORMAL * error
