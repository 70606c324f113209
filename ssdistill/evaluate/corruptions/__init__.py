"""The 15 common corruptions of CIFAR-10-C at 5 severities, generated on the fly.

After Hendrycks and Dietterich, arXiv:1903.12261, with the severities that its authors published
for images of 32 pixels, but made anew: frost is drawn rather than cropped from photographs,
motion blur and clouds are computed here, a few severities are changed so that each changes an
image more than the one before (see ``GLASS``, ``MOTION``, ``SNOW``, ``FROST`` and
``ELASTIC``), and values are rounded rather than cut. Numbers are therefore not comparable with
those published on CIFAR-10-C. What is made of the answers belongs in ``protocols/robust.py``.

Above 32 pixels a side lengths grow in proportion to it, and noise, pixelation, glass and flakes
with its root, which is about how ImageNet-C's constants at 224 pixels relate to those of
CIFAR-10-C; colors and JPEG quality stay. Below 32 pixels the constants of 32 are kept.

What is drawn for an image depends on the seed, the corruption and its position in the test
set: not on the batch, and not on the severity, so an image's five versions differ in strength
alone.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssdistill.errors import UserError, nearest
from ssdistill.evaluate.corruptions.blur import defocus_blur, glass_blur, motion_blur, zoom_blur
from ssdistill.evaluate.corruptions.digital import (
    brightness,
    contrast,
    elastic_transform,
    jpeg_compression,
    pixelate,
)
from ssdistill.evaluate.corruptions.draws import Draws
from ssdistill.evaluate.corruptions.noise import gaussian_noise, impulse_noise, shot_noise
from ssdistill.evaluate.corruptions.weather import fog, frost, snow

CORRUPTIONS: dict[str, Callable[[Tensor, int, float, Draws], Tensor]] = {
    corruption.__name__: corruption
    for corruption in (
        gaussian_noise, shot_noise, impulse_noise, defocus_blur, glass_blur, motion_blur,
        zoom_blur, snow, frost, fog, brightness, contrast, elastic_transform, pixelate,
        jpeg_compression,
    )
}  # fmt: skip
"""By name, in the paper's order: whole numbers (B, 3, H, W), severity, scale and draws to
(B, 3, H, W) in units of 0 to 255, neither rounded nor cut."""
SEVERITIES = (1, 2, 3, 4, 5)
SMALLEST = 8
"""Side in pixels below which the filters do not fit."""
CHUNK = 2**18
"""Pixels worked on at a time."""


@torch.no_grad()
def corrupt(
    images_NHWC: Any, name: str, severity: int, *, seed: int = 0, index_N: Any = None
) -> Any:
    """Apply a corruption to images.

    Args:
        images_NHWC: uint8 RGB, numpy (a memory map is read piece by piece) or torch.
        name: a key of :data:`CORRUPTIONS`.
        severity: 1 to 5.
        seed: of all that is drawn.
        index_N: position of every image in its test set; 0, 1, … by default.

    Returns:
        (N, H, W, 3) uint8, numpy or torch as given.

    Raises:
        UserError: a corruption or severity that is not known, or images that are not uint8
            RGB of at least 8 pixels a side.
    """
    if name not in CORRUPTIONS:
        raise UserError(
            f"unknown corruption '{name}'{nearest(name, CORRUPTIONS)}; "
            f"known: {', '.join(CORRUPTIONS)}"
        )
    if isinstance(severity, bool) or severity not in SEVERITIES:
        raise UserError(f"severity={severity} of '{name}': must be 1, 2, 3, 4 or 5")
    shape, dtype = tuple(images_NHWC.shape), images_NHWC.dtype
    rgb = len(shape) == 4 and shape[3] == 3 and min(shape[1:3]) >= SMALLEST
    if dtype not in (np.uint8, torch.uint8) or not rgb:
        raise UserError(
            f"corruptions require uint8 (N, H, W, 3) of at least {SMALLEST} pixels a side, "
            f"got {dtype} {shape}"
        )
    index_N = torch.arange(shape[0]) if index_N is None else torch.as_tensor(index_N)
    if index_N.shape != shape[:1]:
        raise UserError(f"{len(index_N)} positions for {shape[0]} images; pass one for each")
    is_tensor = isinstance(images_NHWC, Tensor)
    out_NHWC = torch.empty(
        shape, dtype=torch.uint8, device=images_NHWC.device if is_tensor else None
    )
    step = max(1, CHUNK // (shape[1] * shape[2]))
    for start in range(0, shape[0], step):
        rows = slice(start, start + step)
        part = images_NHWC[rows] if is_tensor else torch.from_numpy(np.array(images_NHWC[rows]))
        index_B = index_N[rows].to(part.device)
        out_NHWC[rows] = _corrupt_batch(
            part.movedim(3, 1).contiguous(), name, severity, seed, index_B
        )
    return out_NHWC if is_tensor else out_NHWC.numpy()


def _corrupt_batch(x_BCHW: Tensor, name: str, severity: int, seed: int, index_B: Tensor) -> Tensor:
    draws = Draws(seed, list(CORRUPTIONS).index(name), index_B)
    scale = max(1.0, min(x_BCHW.shape[2:]) / 32)
    changed_BCHW = CORRUPTIONS[name](x_BCHW, severity, scale, draws)
    if changed_BCHW.is_floating_point():
        changed_BCHW = changed_BCHW.round_().clamp_(0, 255)
    return changed_BCHW.to(torch.uint8).movedim(1, 3)
