"""Images of a few slow waves, to be corrupted."""

import numpy as np


def smooth(count=24, side=32, seed=0):
    """Random images of a few slow waves, uint8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    total = np.zeros((count, side, side, 3))
    for _ in range(6):
        down, right, phase = rng.uniform(-3, 3, (3, count, 1, 1, 3))
        total += np.cos(2 * np.pi * (down * y[..., None] + right * x[..., None] + phase))
    return np.clip(127.5 + 45 * total, 0, 255).astype(np.uint8)


def plain(value, count=16, side=32):
    return np.full((count, side, side, 3), value, dtype=np.uint8)
