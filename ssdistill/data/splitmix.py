"""Hashes of numbers by SplitMix64 (Steele et al., OOPSLA 2014, doi:10.1145/2660193.2660195)."""

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ROUNDS = tuple(
    (np.uint64(shift), np.uint64(multiplier))
    for shift, multiplier in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
)
_LAST = np.uint64(31)


def number_hashes(number_N: np.ndarray, key: int = 0) -> np.ndarray:
    """Return a hash of each number, (N,) uint64; a bijection for each key.

    Args:
        key: 64 bits; different keys give independent hashes.
    """
    word_N = number_N.astype(np.uint64)
    word_N += np.uint64(1)
    word_N *= _GOLDEN
    word_N += np.uint64(key)
    return _mix_(word_N)


def mixed(word_N: np.ndarray) -> np.ndarray:
    """Apply the output function of SplitMix64 to (N,) uint64."""
    return _mix_(word_N.copy())


def _mix_(word_N: np.ndarray) -> np.ndarray:
    for shift, multiplier in _ROUNDS:
        word_N ^= word_N >> shift
        word_N *= multiplier
    return word_N ^ (word_N >> _LAST)
