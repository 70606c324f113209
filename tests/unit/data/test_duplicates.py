import numpy as np
import pytest
import torch

from ssdistill.data import duplicates
from ssdistill.data.duplicates import equal_groups, near_groups


def test_equal_hashes_are_one_group_and_unreadable_images_none():
    words = np.array([[1, 2], [3, 4], [1, 2], [1, 5], [3, 4], [1, 2], [0, 0], [0, 0]], "<u8")
    digest_N = words.view("V16").reshape(-1)
    assert equal_groups(digest_N, np.array([1, 1, 1, 1, 1, 1, 0, 0], bool)) == [[0, 2, 5], [1, 4]]
    assert equal_groups(digest_N[:0], np.zeros(0, bool)) == []


def test_hashes_that_differ_in_their_last_byte_are_not_equal():
    words = np.array([[1, 0], [1, 1 << 56]], "<u8").view("V16").reshape(-1)
    assert equal_groups(words, np.ones(2, bool)) == []


def by_hand(z_ND, cosine):
    """Groups by looking at every pair in turn."""
    unit = z_ND / z_ND.norm(dim=1, keepdim=True).clamp(min=1e-12)
    group = list(range(len(unit)))
    for i in range(len(unit)):
        for j in range(i):
            if float(unit[i] @ unit[j]) >= cosine:
                old, new = group[i], group[j]
                group = [new if g == old else g for g in group]
    found = [[i for i, g in enumerate(group) if g == k] for k in set(group)]
    return sorted(g for g in found if len(g) > 1)


@pytest.mark.parametrize(("block", "edges"), [(7, 10**6), (7, 5), (100, 10**6), (1, 1)])
def test_groups_are_those_of_all_pairs_in_any_blocks(monkeypatch, block, edges):
    monkeypatch.setattr(duplicates, "BLOCK", block)
    monkeypatch.setattr(duplicates, "MOST_EDGES", edges)
    generator = torch.Generator().manual_seed(0)
    z_ND = torch.randn(60, 3, generator=generator)
    for cosine in (0.9, 0.98, 0.999):
        assert near_groups(z_ND, cosine) == by_hand(z_ND, cosine)
    assert near_groups(z_ND, 0.98)


def test_length_does_not_count_and_zeros_are_alike_to_none():
    z_ND = torch.tensor([[1.0, 0], [9, 0], [0, 1], [0, 0], [0, 0]])
    assert near_groups(z_ND, 0.99) == [[0, 1]]


def test_a_bar_sees_all_rows(monkeypatch):
    monkeypatch.setattr(duplicates, "BLOCK", 4)
    seen = []

    def watched(parts):
        for part in parts:
            seen.extend(part[0])
            yield part

    near_groups(torch.eye(10), 0.9, watched)
    assert seen == list(range(10))


def test_pairs_are_reduced_to_fewer_that_connect_the_same(monkeypatch):
    monkeypatch.setattr(duplicates, "BLOCK", 10)
    monkeypatch.setattr(duplicates, "MOST_EDGES", 50)
    kept, reduced = [], duplicates._reduced

    def spied(first, second, count):
        found = reduced(first, second, count)
        kept.append((len(first), len(found[0])))
        return found

    monkeypatch.setattr(duplicates, "_reduced", spied)
    assert near_groups(torch.ones(40, 2), 0.9) == [list(range(40))]
    assert len(kept) > 3 and all(after < 40 and before <= 50 + 100 for before, after in kept)
