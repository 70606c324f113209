import pytest

from ssdistill.distill.pairing import resolve_pairs
from ssdistill.errors import UserError


@pytest.mark.parametrize("sizes", [[32], [32, 32], [32, 16, 32, 16]])
def test_same_pairs_every_view_with_itself(sizes):
    assert resolve_pairs("same", sizes) == [(v, v) for v in range(len(sizes))]


def test_other_pairs_two_views_crosswise():
    assert resolve_pairs("other", [32, 32]) == [(0, 1), (1, 0)]


def test_other_pairs_small_views_with_all_full_ones_and_no_teacher_sees_a_small_one():
    got = resolve_pairs("other", [32, 32, 16, 16])
    assert got == [(0, 1), (1, 0), (2, 0), (2, 1), (3, 0), (3, 1)]


def test_other_goes_by_size_and_not_by_place():
    assert resolve_pairs("other", [16, 32]) == [(0, 1)]
    assert resolve_pairs("other", [32, 16, 32]) == [(0, 2), (1, 0), (1, 2), (2, 0)]


def test_other_with_one_full_view_leaves_that_view_to_the_teacher():
    assert resolve_pairs("other", [32, 16, 16]) == [(1, 0), (2, 0)]


def test_other_of_a_single_view_is_that_view():
    assert resolve_pairs("other", [32]) == [(0, 0)]


def test_written_pairs_are_taken_in_their_order_whatever_the_sizes():
    assert resolve_pairs([[1, 0], (0, 0), (0, 2)], [32, 32, 16]) == [(1, 0), (0, 0), (0, 2)]


@pytest.mark.parametrize("pair", [(0, 2), (2, 0)])
def test_a_pair_of_a_view_there_is_not_is_named(pair):
    with pytest.raises(UserError, match=rf"pairs: \[{pair[0]}, {pair[1]}\]: no view 2; "):
        resolve_pairs([(0, 0), pair], [32, 32])


@pytest.mark.parametrize(
    "sizes,known", [([32], "the only view is 0"), ([32] * 3, "views are 0 to 2")]
)
def test_the_views_there_are_are_named(sizes, known):
    with pytest.raises(UserError, match=f"no view 7; {known}$"):
        resolve_pairs([(7, 0)], sizes)
