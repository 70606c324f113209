"""The order of images in an epoch: a permutation by (seed, epoch), computed without memory."""

import numpy as np

ROUNDS = 6
"""Rounds of the Feistel network; four make it hard to tell from a random permutation (Luby and
Rackoff, doi:10.1137/0217022)."""
_GOLDEN, _MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9)
_HIGH, _MIDDLE = np.uint64(32), np.uint64(29)


def shuffled(position_B: np.ndarray, count: int, seed: int, epoch: int) -> np.ndarray:
    """Return the row at each position of an epoch, a permutation of ``range(count)``.

    A Feistel network permutes the smallest even number of bits that holds ``count``; rows beyond
    ``count`` are permuted again until they are within (cycle-walking: Black and Rogaway,
    doi:10.1007/3-540-45760-7_9), at most four times on average. The row at a position is thus
    computed without those at others, for any number of images.

    Args:
        position_B: (B,) integers from 0 to ``count - 1``.
        count: number of images.

    Returns:
        (B,) int64.
    """
    half = np.uint64(max(1, (int(count - 1).bit_length() + 1) // 2))
    key_R = np.random.default_rng((seed, epoch)).integers(0, 2**63, ROUNDS, dtype=np.uint64)
    mask = (np.uint64(1) << half) - np.uint64(1)
    row_B = np.asarray(position_B).astype(np.uint64)
    beyond_B = np.ones(len(row_B), dtype=bool)
    while beyond_B.any():
        left, right = row_B[beyond_B] >> half, row_B[beyond_B] & mask
        for key in key_R:
            mixed = (right + key) * _GOLDEN
            mixed = (mixed ^ (mixed >> _MIDDLE)) * _MIX
            left, right = right, left ^ ((mixed ^ (mixed >> _HIGH)) & mask)
        row_B[beyond_B] = left << half | right
        beyond_B = row_B >= count
    return row_B.astype(np.int64)
