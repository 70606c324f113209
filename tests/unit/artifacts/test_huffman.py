import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssdistill.artifacts.coding import huffman
from ssdistill.artifacts.coding.huffman import LONGEST, RUN, code_lengths, decode, encode, entropy
from ssdistill.errors import UserError

SYMBOLS = st.lists(st.integers(0, 15), min_size=1, max_size=300)


def bits_of(counts):
    return int((counts * code_lengths(counts)).sum())


def heap_lengths(counts):
    """Total bits of Huffman's code by the textbook: what joins are worth, added up."""
    heap, total = sorted(int(c) for c in counts if c), 0
    while len(heap) > 1:
        joined = heap.pop(0) + heap.pop(0)
        total += joined
        heap = sorted([*heap, joined])
    return total


@settings(max_examples=60, deadline=None)
@given(SYMBOLS, st.sampled_from([16, 256]))
def test_what_is_encoded_comes_back(symbols, kinds):
    assert decode(encode(np.array(symbols), kinds), kinds, len(symbols)).tolist() == symbols


@pytest.mark.parametrize("count", [1, RUN - 1, RUN, RUN + 1, 3 * RUN, 3 * RUN + 5])
def test_runs_of_every_length_come_back(count):
    symbols = np.random.default_rng(0).binomial(255, 0.3, count)
    assert np.array_equal(decode(encode(symbols, 256), 256, count), symbols)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=64))
def test_the_code_is_as_short_as_hufmanns_and_within_a_bit_of_the_entropy(counts):
    counts = np.array(counts)
    if (counts > 0).sum() < 2:
        return
    lengths = code_lengths(counts)
    assert (2.0 ** -lengths[lengths > 0].astype(float)).sum() == 1  # no code could be added
    if lengths.max() < LONGEST:
        assert bits_of(counts) == heap_lengths(counts)
        assert entropy(counts) <= bits_of(counts) / counts.sum() < entropy(counts) + 1


def test_no_code_is_longer_than_the_limit():
    counts = 2 ** np.arange(40, dtype=np.int64)
    lengths = code_lengths(counts)
    assert lengths.max() == LONGEST
    assert heap_lengths(counts) <= bits_of(counts) <= 1.001 * heap_lengths(counts)
    symbols = np.repeat(np.arange(16), 2 ** np.arange(16))
    assert np.array_equal(decode(encode(symbols, 256), 256, len(symbols)), symbols)


@pytest.mark.parametrize("seed", range(5))
def test_at_the_limit_too_the_order_of_the_symbols_costs_nothing(seed):
    counts = 2 ** np.arange(LONGEST + 3, dtype=np.int64)
    shuffled = np.random.default_rng(seed).permutation(counts)
    assert code_lengths(shuffled).max() == LONGEST
    assert bits_of(shuffled) == bits_of(counts)


def test_the_bytes_with_all_tables_are_a_few_per_cent_above_the_entropy():
    symbols = np.clip(np.random.default_rng(1).normal(8, 2.5, 200_000), 0, 15).astype(int)
    least = entropy(np.bincount(symbols)) * len(symbols) / 8
    assert least < len(encode(symbols, 16)) < 1.02 * least


def test_entropy_of_known_shares():
    assert entropy(np.array([1, 1, 2, 0])) == pytest.approx(1.5)
    assert entropy(np.array([7])) == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content[:-1],
        lambda content: content + b"\0",
        lambda content: content[:9],
        lambda content: b"\x11" * 8 + content[8:],  # sixteen codes of one bit
        lambda content: content[:8] + b"\xff\xff" + content[10:],
    ],
)
def test_other_bytes_are_refused(change):
    content = encode(np.arange(1000) % 16, 16)
    with pytest.raises(UserError):
        huffman.decode(change(content), 16, 1000)
