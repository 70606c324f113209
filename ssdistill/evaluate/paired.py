"""Paired comparison of two classifiers on the same test images."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ssdistill.errors import UserError
from ssdistill.evaluate.intervals import CONFIDENCE, difference_interval

MARGIN = 1.0
"""Points of accuracy within which two models count as equally good, by default."""


@dataclass(frozen=True)
class Paired:
    """How the first of two classifiers compares with the second. Fractions are in percent.

    Attributes:
        difference: accuracy of the first minus that of the second.
        low, high: 95 % interval of the difference, Tango's
            (:func:`ssdistill.evaluate.intervals.difference_interval`).
        only_first, only_second: test images that only one of them gets right.
        total: test images.
        p_value: McNemar's exact test of "both are right equally often".
        margin: what counts as equally good.
        verdict: of the first. ``equivalent`` where the 90 % interval lies within the margin (two
            one-sided tests at 5 %), else ``better`` or ``worse`` where the p-value is below 5 %,
            else ``undecided``. With many images a difference within the margin can be certain:
            it is ``equivalent`` all the same.
    """

    difference: float
    low: float
    high: float
    only_first: int
    only_second: int
    total: int
    p_value: float
    margin: float
    verdict: str

    def __str__(self) -> str:
        p = "< 0.001" if self.p_value < 0.001 else f"= {self.p_value:.3f}"
        points = "point" if self.margin == 1 else "points"
        margin = f" within {self.margin:g} {points}" if self.verdict == "equivalent" else ""
        return (
            f"{self.difference:+.2f} points ({self.low:+.2f} to {self.high:+.2f}), "
            f"McNemar p {p}: {self.verdict}{margin}"
        )


def paired_test(targets: Any, first: Any, second: Any, *, margin: float = MARGIN) -> Paired:
    """Compare the predictions of two classifiers on the same images.

    The p-value is McNemar's exact one: of the images that only one of them gets right, half
    should be the first's.

    Args:
        targets: true labels, (N,).
        first, second: answered labels, (N,).
        margin: points of accuracy within which they count as equally good.

    Raises:
        UserError: different numbers of images, none, or a margin that is not positive.
    """
    from scipy.stats import binomtest

    targets, first, second = (np.asarray(a) for a in (targets, first, second))
    if targets.ndim != 1 or not len(targets) or not targets.shape == first.shape == second.shape:
        raise UserError(
            f"a paired test requires one label and two predictions per image, got {targets.shape}, "
            f"{first.shape} and {second.shape}"
        )
    if not margin > 0:
        raise UserError(f"margin={margin}: must be positive")
    hit, other = first == targets, second == targets
    only_first, only_second = int((hit & ~other).sum()), int((other & ~hit).sum())
    counts = (only_first, only_second, len(targets))
    apart = only_first + only_second
    p_value = float(binomtest(only_first, apart).pvalue) if apart else 1.0
    low, high = difference_interval(*counts)
    return Paired(
        difference=100 * (only_first - only_second) / len(targets),
        low=low,
        high=high,
        only_first=only_first,
        only_second=only_second,
        total=len(targets),
        p_value=p_value,
        margin=margin,
        verdict=_verdict(counts, p_value, margin),
    )


def _verdict(counts: tuple[int, int, int], p_value: float, margin: float) -> str:
    # Each end of the 90 % interval is a one-sided test at 5 %.
    low, high = difference_interval(*counts, confidence=2 * CONFIDENCE - 1)
    if -margin < low and high < margin:
        return "equivalent"
    if p_value < 1 - CONFIDENCE:
        return "better" if counts[0] > counts[1] else "worse"
    return "undecided"
