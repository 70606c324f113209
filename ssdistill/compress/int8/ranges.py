"""Choose the range of activations to quantize: clipping error against rounding error."""

import numpy as np

from ssdistill.compress.int8.affine import affine_step

FRACTIONS = np.linspace(1.0, 0.02, 99)
"""Candidates from the widest: among equally good ranges the first clips least."""


def mse_range(
    counts_K: np.ndarray, edges_K1: np.ndarray, low: float, high: float, bits: int = 8
) -> tuple[float, float]:
    """The range [a, b] whose quantization changes the values of a histogram least.

    Both ends are drawn in together first, then each by itself, twice; where one of them is 0, as
    after a ReLU, that is a full search. Zero always has a level of its own.

    Args:
        counts_K, edges_K1: histogram of the values, K bins.
        low, high: smallest and largest value seen.
        bits: number of bits of a level.

    Returns:
        (a, b), within [low, high] stretched to contain 0.
    """
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    centers_K = (edges_K1[:-1] + edges_K1[1:]) / 2
    seen_K = counts_K > 0
    values_K, weights_K = centers_K[seen_K], counts_K[seen_K]
    if low == high or not len(values_K):
        return low, high

    def best(candidates: list[tuple[float, float]]) -> tuple[float, float]:
        return min(candidates, key=lambda r: _squared_error(values_K, weights_K, *r, bits))

    lows, highs = low * FRACTIONS, high * FRACTIONS
    low, high = best(list(zip(lows, highs, strict=True)))
    for _ in range(2):
        low, high = best([(low, top) for top in highs])
        low, high = best([(bottom, high) for bottom in lows])
    return float(low), float(high)


def _squared_error(
    values_K: np.ndarray, weights_K: np.ndarray, low: float, high: float, bits: int
) -> float:
    step = affine_step(low, high, bits)
    zero = np.round(-low / step)
    level_K = np.clip(np.round(values_K / step) + zero, 0, 2**bits - 1)
    return float((weights_K * ((level_K - zero) * step - values_K) ** 2).sum())
