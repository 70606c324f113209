"""Small image files for tests of originals."""

from pathlib import Path

import numpy as np
from PIL import Image

SIZES = [(40, 60), (64, 33), (50, 50), (31, 90), (45, 45), (60, 41), (38, 52), (70, 30)]


def smooth_noise(seed: int, height: int, width: int) -> np.ndarray:
    """Return smooth noise, (H, W, 3) uint8, which JPEG and resizing treat like a photograph."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def write_images(path: Path) -> Path:
    """Write one PNG of each size to a new folder; return the folder."""
    path.mkdir()
    for n, (height, width) in enumerate(SIZES):
        Image.fromarray(smooth_noise(n, height, width)).save(path / f"{n}.png")
    return path
