"""The paired test against scipy, and its error rate where the truth is known."""

from math import comb

import numpy as np
import pytest
from scipy.stats import binomtest

from ssdistill.errors import UserError
from ssdistill.evaluate.intervals import difference_interval
from ssdistill.evaluate.paired import paired_test


def answers(only_first, only_second, both, neither=0):
    """Labels, and two classifiers that are right on so many images."""
    first = np.repeat([1, 0, 1, 0], [only_first, only_second, both, neither])
    second = np.repeat([0, 1, 1, 0], [only_first, only_second, both, neither])
    return np.ones(len(first), int), first, second


def two_sided(b, c):
    """McNemar's exact p-value, summed directly."""
    return min(1.0, 2 * sum(comb(b + c, k) for k in range(min(b, c) + 1)) / 2 ** (b + c))


@pytest.mark.parametrize(("b", "c"), [(0, 1), (1, 1), (5, 0), (6, 0), (3, 9), (20, 41), (150, 100)])
def test_the_p_value_is_mcnemars_exact_one(b, c):
    found = paired_test(*answers(b, c, 40))
    assert found.p_value == pytest.approx(two_sided(b, c))
    assert found.p_value == pytest.approx(binomtest(b, b + c).pvalue, rel=1e-12)
    assert (found.only_first, found.only_second, found.total) == (b, c, 40 + b + c)
    assert found.difference == pytest.approx(100 * (b - c) / (40 + b + c))


def test_counts_come_from_labels_and_answers_of_several_classes():
    rng = np.random.default_rng(0)
    targets, first, second = rng.integers(0, 4, (3, 300))
    found = paired_test(targets, first, second)
    b = sum(f == t != s for t, f, s in zip(targets, first, second, strict=True))
    c = sum(s == t != f for t, f, s in zip(targets, first, second, strict=True))
    assert (found.only_first, found.only_second) == (b, c)
    assert (found.low, found.high) == difference_interval(b, c, 300)
    accuracy = 100 * (first == targets).mean() - 100 * (second == targets).mean()
    assert found.difference == pytest.approx(accuracy)


def test_swapping_the_two_swaps_the_verdict():
    targets, first, second = answers(60, 20, 500)
    one, other = paired_test(targets, first, second), paired_test(targets, second, first)
    assert (one.verdict, other.verdict) == ("better", "worse")
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low))
    assert one.p_value == other.p_value


@pytest.mark.parametrize(
    ("b", "c", "both", "margin", "verdict"),
    [
        # Equal answers, but few images: a point more or less is well possible.
        (0, 0, 1, 1.0, "undecided"),
        (0, 0, 200, 1.0, "undecided"),
        (0, 0, 300, 1.0, "equivalent"),
        (0, 0, 1, 99.0, "equivalent"),
        # One image decides nothing, nor do five (p = 0.0625); six do (p = 0.031).
        (1, 0, 0, 1.0, "undecided"),
        (5, 0, 0, 1.0, "undecided"),
        (0, 6, 0, 1.0, "worse"),
        (6, 0, 994, 0.5, "better"),
        # Certainly different, and certainly by less than the margin.
        (60, 20, 9920, 1.0, "equivalent"),
        (60, 20, 9920, 0.3, "better"),
        (25, 25, 950, 1.0, "undecided"),
        (25, 25, 9950, 1.0, "equivalent"),
    ],
)
def test_verdicts(b, c, both, margin, verdict):
    assert paired_test(*answers(b, c, both), margin=margin).verdict == verdict


def test_who_is_better_has_an_interval_beyond_0_and_a_small_p():
    """The text shows all three: they must not contradict each other."""
    for b in range(25):
        for c in range(25):
            found = paired_test(*answers(b, c, 30), margin=0.01)
            if found.verdict != "undecided":
                assert found.p_value < 0.05
                assert (found.low > 0) == (found.verdict == "better")
                assert (found.high < 0) == (found.verdict == "worse")


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        ((60, 20, 920), "+4.00 points (+2.31 to +5.84), McNemar p < 0.001: better"),
        ((3, 5, 9992), "McNemar p = 0.727: equivalent within 1 point"),
    ],
)
def test_in_words(counts, text):
    assert text in str(paired_test(*answers(*counts)))
    assert str(paired_test(*answers(0, 0, 999), margin=2.5)).endswith("within 2.5 points")


@pytest.fixture(scope="module")
def simulated():
    """``simulated(first, second, n)``: verdicts and intervals of 700 pairs of classifiers."""
    known = {}

    def simulate(only_first, only_second, n, margin=1.0):
        generator = np.random.default_rng(5)
        shares = [only_first, only_second, 1 - only_first - only_second]
        found = []
        for b, c, rest in generator.multinomial(n, shares, 700).tolist():
            if (b, c) not in known:
                known[b, c] = paired_test(*answers(b, c, rest), margin=margin)
            found.append(known[b, c])
        known.clear()
        return found

    return simulate


def fraction_of(found, verdict):
    return np.mean([pair.verdict in verdict for pair in found])


def test_equally_good_models_are_called_different_5_times_in_100_at_most(simulated):
    found = simulated(0.05, 0.05, 1000, margin=0.01)
    assert 0.02 < fraction_of(found, ("better", "worse")) < 0.06
    assert np.mean([pair.low <= 0 <= pair.high for pair in found]) == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize("sign", [1, -1])
def test_models_a_margin_apart_are_called_equivalent_5_times_in_100(simulated, sign):
    one, other = 0.03, 0.03 + 0.02
    found = simulated(*((other, one) if sign > 0 else (one, other)), 4000, margin=2.0)
    assert 0.03 < fraction_of(found, ("equivalent",)) < 0.07


def test_intervals_cover_a_difference_95_times_in_100(simulated):
    found = simulated(0.06, 0.02, 300)
    covered = np.mean([pair.low <= 4 <= pair.high for pair in found])
    assert covered == pytest.approx(0.95, abs=0.02)


def test_equal_models_are_found_equivalent_with_many_images(simulated):
    assert fraction_of(simulated(0.01, 0.01, 5000), ("equivalent",)) > 0.99


@pytest.mark.parametrize(
    ("arrays", "margin", "says"),
    [
        (([], [], []), 1, "one label and two predictions per image"),
        (([1, 2], [1, 2], [1]), 1, r"\(2,\), \(2,\) and \(1,\)"),
        (([[1], [2]], [[1], [2]], [[1], [2]]), 1, r"\(2, 1\)"),
        (([1], [1], [1]), 0, "margin=0: must be positive"),
        (([1], [1], [1]), float("nan"), "margin=nan"),
    ],
)
def test_mistakes_are_named(arrays, margin, says):
    with pytest.raises(UserError, match=says):
        paired_test(*arrays, margin=margin)
