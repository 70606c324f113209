"""Digital corruptions: brightness, contrast, elastic transform, pixelation, JPEG."""

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from ssdistill.evaluate.corruptions.draws import Draws
from ssdistill.evaluate.corruptions.filters import gaussian_rows, pixelate_rows, resample

BRIGHTNESS = (0.05, 0.1, 0.15, 0.2, 0.3)
"""Added to the value of HSV, white being 1."""
CONTRAST = (0.75, 0.5, 0.4, 0.3, 0.15)
"""Fraction of the distance from the mean that remains."""
ELASTIC = ((0.05, 0.08, 0.01), (0.065, 0.07, 0.02), (0.08, 0.06, 0.03), (0.1, 0.04, 0.03),
           (0.1, 0.03, 0.03))  # fmt: skip
"""Strength and smoothness of the field, and how far three points are moved, in sides.

The paper's field from severity 3 on. Its three points move less as severity rises (0.08 to
0.03), so that the image changes least where it should change most; here they move more, up to
the paper's last value."""
PIXELATE = (0.95, 0.9, 0.85, 0.75, 0.65)
"""Fraction of the pixels a side that remains."""
QUALITY = (80, 65, 58, 50, 40)
"""Of the JPEG file."""


def brightness(x_BCHW: Tensor, severity: int, scale: float, draws: Draws) -> Tensor:
    """Add to the HSV value; hue and saturation stay."""
    added = 255 * BRIGHTNESS[severity - 1]
    value_B1HW = x_BCHW.double().amax(1, keepdim=True)
    gain_B1HW = (value_B1HW + added).clamp_(max=255) / value_B1HW.clamp_min(1)
    return torch.where(value_B1HW > 0, x_BCHW * gain_B1HW, added)


def contrast(x_BCHW: Tensor, severity: int, scale: float, draws: Draws) -> Tensor:
    """Shrink every channel towards its mean over the image."""
    # A sum of whole numbers is exact in any order; a mean of quotients would not be.
    mean_BC11 = x_BCHW.double().sum((2, 3), keepdim=True) / x_BCHW[0, 0].numel()
    return (x_BCHW - mean_BC11) * CONTRAST[severity - 1] + mean_BC11


def elastic_transform(x_BCHW: Tensor, severity: int, scale: float, draws: Draws) -> Tensor:
    """Apply a random affine map of three points plus a smooth random displacement field."""
    strength, smooth, moved = ELASTIC[severity - 1]
    height, width = x_BCHW.shape[2:]
    side = min(height, width)
    rows = [gaussian_rows(size, smooth * side) for size in (height, width)]
    words_B2HW = draws.words(0, 2, height, width)
    field_B2HW = resample(words_B2HW * 2 + 1, *rows) / 2**16 - 1
    jitter_B32 = draws.uniform(1, -moved * side, moved * side, 3, 2)
    # A wider Gaussian averages more of the field away; on a larger image it must reach farther.
    shift_B2HW = field_B2HW * (strength * side * scale) + _affine(height, width, jitter_B32)
    place_2HW = torch.stack(
        torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy")
    ).to(x_BCHW.device)
    last_2 = place_2HW.new_tensor([width - 1, height - 1])[:, None, None]
    # -1 and 1 are the middles of the outermost pixels.
    grid_B2HW = (place_2HW + shift_B2HW) * 2 / last_2 - 1
    return functional.grid_sample(
        x_BCHW.float(),
        grid_B2HW.movedim(1, 3).float(),
        mode="bilinear",
        padding_mode="reflection",
        align_corners=True,
    )


def _affine(height: int, width: int, jitter_B32: Tensor) -> Tensor:
    """(B, 2, H, W) shift in x and y that is ``jitter`` at three corners of a centered square."""
    half = min(height, width) // 3
    middle = (width // 2, height // 2)
    corners = [(half, half), (half, -half), (-half, -half)]
    points_33 = torch.tensor(
        [[middle[0] + x, middle[1] + y, 1] for x, y in corners], dtype=torch.float64
    )
    x_HW, y_HW = torch.meshgrid(
        torch.arange(width, dtype=torch.float64),
        torch.arange(height, dtype=torch.float64),
        indexing="xy",
    )
    # How much each corner counts at a pixel: linear, 1 at its own corner and 0 at the others.
    share_3HW = torch.einsum(
        "cp,chw->phw", points_33.inverse(), torch.stack([x_HW, y_HW, torch.ones_like(x_HW)])
    ).to(jitter_B32.device)
    parts = [jitter_B32[:, k, :, None, None] * share_3HW[k] for k in range(3)]
    return parts[0] + parts[1] + parts[2]


def pixelate(x_BCHW: Tensor, severity: int, scale: float, draws: Draws) -> Tensor:
    """Fewer pixels, shown as squares. Their number a side falls with the root of the side."""
    share = PIXELATE[severity - 1] / scale**0.5
    rows = [pixelate_rows(size, max(1, int(size * share))) for size in x_BCHW.shape[2:]]
    return resample(x_BCHW, *rows)


def jpeg_compression(x_BCHW: Tensor, severity: int, scale: float, draws: Draws) -> Tensor:
    """Compress as JPEG and decode again, image by image."""
    images_BHWC = x_BCHW.movedim(1, 3).cpu().numpy()
    changed_BHWC = np.empty_like(images_BHWC)
    for image_HWC, changed_HWC in zip(images_BHWC, changed_BHWC, strict=True):
        file = io.BytesIO()
        Image.fromarray(image_HWC).save(file, "JPEG", quality=QUALITY[severity - 1])
        changed_HWC[:] = np.asarray(Image.open(file))
    return torch.from_numpy(changed_BHWC).movedim(3, 1).to(x_BCHW.device)
