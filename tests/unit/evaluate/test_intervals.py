"""Intervals against resampling, numerically maximized likelihoods, and exact coverage."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import binom, binomtest, norm

from ssdistill.evaluate.intervals import (
    balanced_interval,
    binomial_interval,
    difference_interval,
    exact_interval,
)


@pytest.mark.parametrize(("hits", "total"), [(1, 7), (45, 50), (300, 1000), (9612, 10_000)])
def test_a_binomial_interval_is_that_of_20000_resamples(hits, total):
    generator = np.random.default_rng(0)
    answers = np.arange(total) < hits
    means = [
        answers[generator.integers(0, total, total)].mean()
        for _ in range(20_000 if total < 2000 else 4000)
    ]
    expected = 100 * np.percentile(means, [2.5, 97.5])
    # One image more or less is all the resampling leaves open, or its own noise.
    close = max(100 / total, 0.04)
    assert binomial_interval(hits, total) == pytest.approx(expected, abs=close)


@pytest.mark.parametrize("total", [50, 200, 1000])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.8, 0.9, 0.95, 0.99])
def test_a_binomial_interval_covers_the_truth_about_95_times_in_100(total, share):
    """Exactly, as every number of hits has a known probability."""
    low, high = np.array([binomial_interval(hits, total) for hits in range(total + 1)]).T / 100
    covered = (low <= share) & (share <= high)
    coverage = (binom.pmf(np.arange(total + 1), total, share) * covered).sum()
    assert coverage > 0.915
    if total * share * (1 - share) > 5:
        assert coverage < 0.97


@pytest.mark.parametrize("total", [1, 3, 50, 10_000])
def test_all_right_and_all_wrong_keep_a_width(total):
    low, high = binomial_interval(total, total)
    assert high == 100 and low == pytest.approx(100 * 0.05 ** (1 / total))
    assert binomial_interval(0, total) == pytest.approx((0, 100 - low), abs=1e-9)


@pytest.mark.parametrize("total", [20, 100, 1000])
def test_more_hits_never_lower_an_interval(total):
    ends = np.array([binomial_interval(hits, total) for hits in range(total + 1)])
    assert (np.diff(ends, axis=0) > -1e-9).all()
    shares = 100 * np.arange(total + 1) / total
    assert (ends[:, 0] <= shares).all() and (shares <= ends[:, 1]).all()


@pytest.mark.parametrize(("hits", "total"), [(1, 9), (5, 9), (70, 100)])
def test_an_exact_interval_is_scipys(hits, total):
    expected = binomtest(hits, total).proportion_ci(0.95, "exact")
    low, high = exact_interval(hits / total, total)
    assert (low / 100, high / 100) == pytest.approx(tuple(expected), rel=0, abs=1e-12)


@pytest.mark.parametrize("total", [1, 9, 100])
def test_all_right_and_all_wrong_have_scipys_one_sided_interval(total):
    for hits, side in ((0, "less"), (total, "greater")):
        expected = binomtest(hits, total, alternative=side).proportion_ci(0.95, "exact")
        low, high = exact_interval(hits / total, total)
        assert (low / 100, high / 100) == pytest.approx(tuple(expected), rel=0, abs=1e-12)


@pytest.mark.parametrize(
    ("hit_K", "total_K"),
    [
        ((190, 30, 3), (200, 50, 8)),
        # Equally large classes: a mean recall instead of each class's own is 2.3 times as wide.
        ((95, 5), (100, 100)),
        ((99, 50, 3), (100, 100, 100)),
    ],
)
def test_a_balanced_interval_is_that_of_resampled_images(hit_K, total_K):
    total_K, hit_K = np.array(total_K), np.array(hit_K)
    generator = np.random.default_rng(1)
    means = [
        np.mean([
            (generator.integers(0, total, total) < hits).mean()
            for hits, total in zip(hit_K, total_K, strict=True)
        ])
        for _ in range(8000)
    ]  # fmt: skip
    expected = 100 * np.percentile(means, [2.5, 97.5])
    assert balanced_interval(hit_K, total_K, seed=0) == pytest.approx(expected, abs=1.0)


@pytest.mark.parametrize(
    ("total_K", "share_K"),
    [((200, 100, 60, 30), (0.95, 0.8, 0.7, 0.5)), ((150, 150, 150), (0.95, 0.5, 0.05))],
)
def test_a_balanced_interval_covers_the_truth_about_95_times_in_100(total_K, share_K):
    generator = np.random.default_rng(2)
    total_K, share_K = np.array(total_K), np.array(share_K)
    covered = []
    for seed in range(300):
        low, high = balanced_interval(generator.binomial(total_K, share_K), total_K, seed)
        covered.append(low <= 100 * share_K.mean() <= high)
    assert 0.91 < np.mean(covered) < 0.98


def test_without_spread_a_balanced_interval_keeps_a_width():
    equal = np.full(10, 20)
    assert balanced_interval(equal, equal, 0) == pytest.approx(binomial_interval(200, 200))
    # A class of one image says less of its recall than one of many.
    uneven = np.array([199, 1])
    low, high = balanced_interval(uneven, uneven, 0)
    assert low < 50 < high == 100
    low, high = balanced_interval(np.array([20, 0, 0, 0]), np.full(4, 20), 0)
    assert low < 25 < high


def slow_score(difference, first, second, n):
    """Tango's statistic, the nuisance share found by maximizing the likelihood."""

    def minus_log_likelihood(share):
        cells = np.array([share + difference, share, 1 - 2 * share - difference])
        counts = np.array([first, second, n - first - second])
        if (cells < 0).any() or (counts[cells == 0] > 0).any():
            return 1e12
        return -(counts[counts > 0] * np.log(cells[counts > 0])).sum()

    ends = (max(0, -difference), (1 - difference) / 2)
    share = minimize_scalar(
        minus_log_likelihood, bounds=ends, method="bounded", options={"xatol": 1e-12}
    ).x
    variance = n * (2 * share + difference * (1 - difference))
    return (first - second - n * difference) / variance**0.5


@pytest.mark.parametrize(
    ("first", "second", "n"), [(5, 3, 40), (12, 2, 100), (30, 45, 900), (1, 6, 8), (200, 150, 5000)]
)
def test_the_ends_of_a_difference_are_just_rejected(first, second, n):
    low, high = difference_interval(first, second, n)
    z = norm.ppf(0.975)
    assert slow_score(low / 100, first, second, n) == pytest.approx(z, rel=1e-3)
    assert slow_score(high / 100, first, second, n) == pytest.approx(-z, rel=1e-3)


@pytest.mark.parametrize(("first", "second", "n"), [(40, 25, 1000), (300, 320, 10_000)])
def test_a_difference_has_the_interval_of_20000_paired_resamples(first, second, n):
    generator = np.random.default_rng(3)
    shares = [first / n, second / n, 1 - (first + second) / n]
    # Resampled images are a multinomial draw of the three sorts of images.
    draws = generator.multinomial(n, shares, 20_000)
    expected = np.percentile(100 * (draws[:, 0] - draws[:, 1]) / n, [2.5, 97.5])
    width = expected[1] - expected[0]
    assert difference_interval(first, second, n) == pytest.approx(expected, abs=0.04 * width)


def test_swapping_the_two_turns_the_interval_round():
    low, high = difference_interval(17, 4, 200)
    assert difference_interval(4, 17, 200) == pytest.approx((-high, -low))


@pytest.mark.parametrize("n", [1, 20, 10_000])
def test_equal_answers_keep_a_width(n):
    z = norm.ppf(0.975)
    # Solved by hand: n d / (1 - d) = z^2.
    expected = 100 * z**2 / (n + z**2)
    assert difference_interval(0, 0, n) == pytest.approx((-expected, expected), rel=1e-6)


@pytest.mark.parametrize(("first", "second", "n"), [(1, 0, 1), (9, 0, 9), (0, 9, 9), (3, 0, 500)])
def test_one_sided_answers_have_an_interval_inside_100_points(first, second, n):
    low, high = difference_interval(first, second, n)
    assert -100 <= low < high <= 100
    assert low <= 100 * (first - second) / n <= high
