"""Test images of a set that has none: chosen by a hash of each image's number."""

import numpy as np

TEST_FRACTION_LABELED, TEST_FRACTION_UNLABELED = 0.2, 0.1
TRAINABLE = 2
"""With at most this many images, none is held out by default."""
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ROUNDS = tuple(
    (np.uint64(shift), np.uint64(multiplier))
    for shift, multiplier in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
)
_LAST = np.uint64(31)


def mixed(number_N: np.ndarray, key: int = 0) -> np.ndarray:
    """Return a hash of each number, (N,) uint64: the output function of SplitMix64.

    Source: Steele et al., OOPSLA 2014, doi:10.1145/2660193.2660195.

    Args:
        key: another one gives unrelated numbers.
    """
    word_N = number_N.astype(np.uint64)
    word_N += np.uint64(1)
    word_N *= _GOLDEN
    word_N += np.uint64(key)
    for shift, multiplier in _ROUNDS:
        word_N ^= word_N >> shift
        word_N *= multiplier
    return word_N ^ (word_N >> _LAST)


def hold_out(
    count: int, fraction: float | None, labeled: bool
) -> tuple[np.ndarray | None, np.ndarray]:
    """Split the numbers from 0 to ``count - 1`` into (train, test), rising.

    Args:
        fraction: of the test images; None takes 0.2 with labels, 0.1 without, and none of
            one or two images.

    Returns:
        (N,) uint32 or int64 each; None as training images stands for all of them.
    """
    if fraction is None:
        fraction = TEST_FRACTION_LABELED if labeled else TEST_FRACTION_UNLABELED
        if count <= TRAINABLE:
            fraction = 0.0
    number = np.uint32 if count < 1 << 32 else np.int64
    held = min(max(round(fraction * count), int(fraction > 0)), count - 1)
    if held <= 0:
        return None, np.empty(0, number)
    hash_N = mixed(np.arange(count, dtype=np.uint64))
    # Hashes differ, since the function is a bijection: the bound is exact.
    test_N = hash_N < np.partition(hash_N, held)[held]
    return np.flatnonzero(~test_N).astype(number), np.flatnonzero(test_N).astype(number)
