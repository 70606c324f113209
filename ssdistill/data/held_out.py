"""Choose the images that are held out where there are no test images."""

import numpy as np

from ssdistill.data.names import Names

TEST_FRACTION_LABELED, TEST_FRACTION_UNLABELED = 0.2, 0.1
TRAINABLE = 2
"""With at most this many images, none is held out by default."""


def fraction_of(fraction: float | None, count: int, labeled: bool) -> float:
    """Return the fraction to hold out of ``count`` images; None takes the default."""
    if fraction is not None:
        return fraction
    if count <= TRAINABLE:
        return 0.0
    return TEST_FRACTION_LABELED if labeled else TEST_FRACTION_UNLABELED


def held_out_by_name(
    names: Names, class_N: np.ndarray | None, fraction: float | None
) -> np.ndarray:
    """Return (N,) bool: in each class, the names with the smallest hashes are test images.

    Args:
        class_N: integers from 0; None if unlabeled.
        fraction: of each class; None takes the default.
    """
    share = fraction_of(fraction, len(names), class_N is not None)
    out_N = np.zeros(len(names), dtype=bool)
    if not len(names):
        return out_N
    class_N = np.zeros(len(names), dtype=np.int32) if class_N is None else class_N
    order = np.lexsort((names.hashes(), class_N))
    count_K = np.bincount(class_N)
    for start, count in zip(np.cumsum(count_K) - count_K, count_K.tolist(), strict=True):
        held = min(max(round(share * count), int(share > 0)), count - 1)
        out_N[order[start : start + max(0, held)]] = True
    return out_N


def held_out_by_key(key_N: np.ndarray, share: float) -> np.ndarray:
    """Return (N,) bool: images with the smallest keys; those of one key are never parted.

    As many keys as come closest to ``share`` of the images, of two at least one, and never all.

    Args:
        key_N: (N,) uint64, hashes.
        share: fraction of the images.
    """
    keys, inverse_N, count_K = np.unique(key_N, return_inverse=True, return_counts=True)
    if share <= 0 or len(keys) < 2:
        return np.zeros(len(key_N), dtype=bool)
    upto_K = np.cumsum(count_K)
    # Of two that are equally close, the smaller.
    held = int(np.argmin(np.abs(upto_K - share * len(key_N)))) + 1
    return inverse_N < min(held, len(keys) - 1)
