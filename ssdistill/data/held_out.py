"""Choose test images for sources without any: by hashes of names, keys or row numbers."""

import numpy as np

from ssdistill.data.names import Names
from ssdistill.data.splitmix import number_hashes

TEST_FRACTION_LABELED, TEST_FRACTION_UNLABELED = 0.2, 0.1
TRAINABLE = 2
"""Number of images up to which none is held out by default."""


def fraction_of(fraction: float | None, count: int, labeled: bool) -> float:
    """Return the fraction of ``count`` images to hold out; None means the default."""
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
        fraction: of each class; None means the default.
    """
    fraction = fraction_of(fraction, len(names), class_N is not None)
    test_N = np.zeros(len(names), dtype=bool)
    if not len(names):
        return test_N
    class_N = np.zeros(len(names), dtype=np.int32) if class_N is None else class_N
    order = np.lexsort((names.hashes(), class_N))
    count_K = np.bincount(class_N)
    for start, count in zip(np.cumsum(count_K) - count_K, count_K.tolist(), strict=True):
        num_test = min(max(round(fraction * count), int(fraction > 0)), count - 1)
        test_N[order[start : start + max(0, num_test)]] = True
    return test_N


def held_out_by_key(key_N: np.ndarray, fraction: float) -> np.ndarray:
    """Return (N,) bool: images with the smallest keys are test images; equal keys stay together.

    The number of keys is chosen to match ``fraction`` as closely as possible, but is at least one
    and never all (of two keys or more).

    Args:
        key_N: (N,) uint64, hashes.
        fraction: of the images.
    """
    keys, inverse_N, count_K = np.unique(key_N, return_inverse=True, return_counts=True)
    if fraction <= 0 or len(keys) < 2:
        return np.zeros(len(key_N), dtype=bool)
    total_K = np.cumsum(count_K)
    # argmin takes the smaller of two that are equally close.
    num_keys = int(np.argmin(np.abs(total_K - fraction * len(key_N)))) + 1
    return inverse_N < min(num_keys, len(keys) - 1)


def held_out_by_number(
    count: int, fraction: float | None, labeled: bool
) -> tuple[np.ndarray | None, np.ndarray]:
    """Split the numbers from 0 to ``count - 1`` into (train, test), each ascending.

    Args:
        fraction: of the test images; None means the default.

    Returns:
        (N,) uint32 or int64 each; None instead of training images means all of them.
    """
    fraction = fraction_of(fraction, count, labeled)
    dtype = np.uint32 if count < 1 << 32 else np.int64
    num_test = min(max(round(fraction * count), int(fraction > 0)), count - 1)
    if num_test <= 0:
        return None, np.empty(0, dtype)
    hash_N = number_hashes(np.arange(count, dtype=np.uint64))
    # Hashes are distinct, since the function is a bijection, so the bound is exact.
    test_N = hash_N < np.partition(hash_N, num_test)[num_test]
    return np.flatnonzero(~test_N).astype(dtype), np.flatnonzero(test_N).astype(dtype)
