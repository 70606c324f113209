"""The order of an epoch: a permutation, found position by position."""

import numpy as np
import pytest

from ssdistill.data.order import shuffled


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 16, 17, 63, 64, 65, 1000, 4097])
def test_every_row_once(count):
    assert sorted(shuffled(np.arange(count), count, 0, 0)) == list(range(count))


def test_a_position_alone_has_the_row_it_has_among_all():
    whole = shuffled(np.arange(1000), 1000, 5, 2)
    assert np.array_equal(shuffled(np.array([999, 3, 500]), 1000, 5, 2), whole[[999, 3, 500]])


@pytest.mark.parametrize("other", [(5, 3), (6, 2), (2, 5)])
def test_seed_and_epoch_change_the_order(other):
    first, second = (shuffled(np.arange(1000), 1000, *key) for key in ((5, 2), other))
    assert (first == second).mean() < 0.02


def test_rows_are_spread_evenly_and_unrelated():
    count = 100_000_000
    row_B = shuffled(np.arange(20_000), count, 1, 0)
    assert len(set(row_B.tolist())) == 20_000 and row_B.max() < count
    counted, _ = np.histogram(row_B, bins=20, range=(0, count))
    # Chi-square with 19 degrees of freedom: 43.8 is its 0.999 quantile.
    assert ((counted - 1000) ** 2 / 1000).sum() < 43.8
    assert abs(np.corrcoef(row_B[:-1], row_B[1:])[0, 1]) < 0.03
