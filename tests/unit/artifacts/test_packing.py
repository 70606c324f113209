import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ssdistill.artifacts.coding.packing import (
    pack,
    read_floats,
    read_mask,
    read_symbols,
    unpack,
    width_of,
    write_floats,
    write_mask,
    write_symbols,
)
from ssdistill.errors import UserError


@settings(max_examples=80, deadline=None)
@given(st.data(), st.integers(1, 8))
def test_symbols_come_back_at_every_width(data, bits):
    symbols = np.array(data.draw(st.lists(st.integers(0, 2**bits - 1), max_size=70)), int)
    packed = pack(symbols, bits)
    assert len(packed) == -(-bits * len(symbols) // 8)
    assert np.array_equal(unpack(packed, bits, len(symbols)), symbols)
    for entropy in (False, True):
        written = write_symbols(symbols, bits, entropy)
        assert len(written) <= len(packed) + 1
        assert np.array_equal(read_symbols(written, bits, len(symbols)), symbols)


def test_the_highest_bit_comes_first():
    assert pack(np.array([5, 2, 7]), 3) == bytes([0b10101011, 0b10000000])


def test_regular_symbols_are_shorter_than_their_width():
    symbols = np.repeat([0, 0, 0, 0, 0, 0, 0, 3], 500)
    assert len(write_symbols(symbols, 2)) < 0.7 * len(pack(symbols, 2))


@pytest.mark.parametrize(("symbols", "bits"), [([4], 2), ([-1], 8), ([0], 0), ([0], 9), ([256], 8)])
def test_what_does_not_fit_is_refused(symbols, bits):
    with pytest.raises(UserError, match="bits"):
        pack(np.array(symbols), bits)


@pytest.mark.parametrize("content", [b"", b"\x02abc", b"\x00a", b"\x00abcde"])
def test_bytes_that_are_no_symbols_are_refused(content):
    with pytest.raises(UserError):
        read_symbols(content, 8, 3)


def test_widths_of_counts():
    assert [width_of(n) for n in (1, 2, 3, 4, 5, 16, 17, 256)] == [1, 1, 2, 2, 3, 4, 5, 8]


@settings(max_examples=80, deadline=None)
@given(arrays.arrays(bool, st.integers(0, 3000), elements=st.booleans()), st.booleans())
def test_masks_come_back(mask, entropy):
    assert np.array_equal(read_mask(write_mask(mask, entropy), len(mask)), mask)


@pytest.mark.parametrize("kept", [0.0, 0.0005, 0.01, 0.1, 0.5, 0.9])
def test_a_mask_takes_little_more_than_its_entropy_and_no_more_than_a_bit_each(kept):
    mask = np.random.default_rng(0).random(100_000) < kept
    written = write_mask(mask)
    assert np.array_equal(read_mask(written, len(mask)), mask)
    share = mask.mean()
    least = sum(-p * np.log2(p) for p in (share, 1 - share) if p) * len(mask) / 8
    assert len(written) <= min(1.08 * least + 300, len(mask) / 8 + 2)


@pytest.mark.parametrize("content", [b"", b"\x07", b"\x01\x02\0\0\0\x00\xfe\xfe", b"\x00\x00a"])
def test_bytes_that_are_no_mask_are_refused(content):
    with pytest.raises(UserError):
        read_mask(content, 100)


def test_floats_are_halved_only_where_nothing_is_lost():
    for numbers, half in (([0.5, -2.0, 1024.0], True), ([0.1], False), ([1e30], False)):
        numbers = np.array(numbers, np.float32)
        content, halved = write_floats(numbers)
        assert halved == half and len(content) == len(numbers) * (2 if half else 4)
        found, rest = read_floats(content + b"rest", len(numbers), halved)
        assert np.array_equal(found, numbers) and rest == b"rest"
