"""Crop, resize and flip a batch, with one rectangle per image."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

CROP_TRIES = 10
CROP_SLOTS = 2 * CROP_TRIES + 2
"""Uniform random numbers that :func:`random_boxes` reads per image."""
_FAR = 1e9
"""A pixel position out of reach of any interpolation kernel."""


@dataclass(frozen=True)
class Boxes:
    """One rectangle per image, in source pixels; all fields are (B,) int64."""

    top_B: Tensor
    left_B: Tensor
    height_B: Tensor
    width_B: Tensor


def random_boxes(
    uniform_BK: Tensor,
    height: int | Tensor,
    width: int | Tensor,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> Boxes:
    """Draw rectangles from the distribution of torchvision's ``RandomResizedCrop``.

    Ten candidates (area, aspect ratio) are drawn per image, with area uniform in ``scale`` and
    aspect ratio log-uniform in ``ratio``. The first that fits is placed uniformly; if none fits,
    the largest centered rectangle with an allowed aspect ratio is used.

    Args:
        uniform_BK: (B, :data:`CROP_SLOTS`) float64 in [0, 1).
        height, width: of the source images in pixels; one number, or (B,).
        scale: smallest and largest fraction of the source's area.
        ratio: smallest and largest width / height.
    """
    area_u_BT, ratio_u_BT, place_B2 = uniform_BK.split([CROP_TRIES, CROP_TRIES, 2], dim=1)
    height_B, width_B = (
        torch.as_tensor(side, dtype=torch.float64, device=uniform_BK.device).expand(len(uniform_BK))
        for side in (height, width)
    )
    high_B1, wide_B1 = height_B[:, None], width_B[:, None]
    area_BT = high_B1 * wide_B1 * (scale[0] + area_u_BT * (scale[1] - scale[0]))
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect_BT = torch.exp(low + ratio_u_BT * (high - low))
    width_BT = torch.round(torch.sqrt(area_BT * aspect_BT))
    height_BT = torch.round(torch.sqrt(area_BT / aspect_BT))
    fits_BT = (width_BT > 0) & (width_BT <= wide_B1) & (height_BT > 0) & (height_BT <= high_B1)
    first_B1 = fits_BT.to(torch.uint8).argmax(dim=1, keepdim=True)
    fits_B = fits_BT.any(dim=1)

    last_height_B, last_width_B = _centered_box(height_B, width_B, ratio)
    box_height_B = torch.where(fits_B, height_BT.gather(1, first_B1)[:, 0], last_height_B)
    box_width_B = torch.where(fits_B, width_BT.gather(1, first_B1)[:, 0], last_width_B)
    top_B = torch.floor(place_B2[:, 0] * (height_B - box_height_B + 1))
    left_B = torch.floor(place_B2[:, 1] * (width_B - box_width_B + 1))
    top_B = torch.where(fits_B, top_B, torch.floor((height_B - last_height_B) / 2))
    left_B = torch.where(fits_B, left_B, torch.floor((width_B - last_width_B) / 2))
    edges = (top_B, left_B, box_height_B, box_width_B)
    return Boxes(*(edge_B.to(torch.int64) for edge_B in edges))


def _centered_box(
    height_B: Tensor, width_B: Tensor, ratio: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Return the fallback (height, width) of RandomResizedCrop, at least one pixel each."""
    narrow_B, wide_B = width_B / height_B < min(ratio), width_B / height_B > max(ratio)
    last_height_B = torch.where(narrow_B, torch.round(width_B / min(ratio)), height_B)
    last_width_B = torch.where(wide_B, torch.round(height_B * max(ratio)), width_B)
    return last_height_B.clamp_min(1), last_width_B.clamp_min(1)


def interpolation_matrix(
    start_B: Tensor, length_B: Tensor, source: int, target: int, flip_B: Tensor | None = None
) -> Tensor:
    """Return weights that resample ``length`` pixels from ``start`` to ``target``, linearly.

    Antialiased as in ``torch.nn.functional.interpolate(antialias=True)``: a triangle that scales
    with the downsampling factor (at least 2 pixels wide), truncated at the edge of the rectangle
    and renormalized. For upsampling, this clamps to the edge. ``flip_B`` reverses the rows.

    Returns:
        (B, target, source) float32, rows summing to 1.
    """
    step_B = length_B.to(torch.float32) / target
    out_T = torch.arange(target, device=start_B.device, dtype=torch.float32) + 0.5
    out_BT = out_T.expand(len(start_B), -1)
    if flip_B is not None:
        out_BT = torch.where(flip_B[:, None], target - out_BT, out_BT)
    center_BT = out_BT * step_B[:, None]
    pixel_S = torch.arange(source, device=start_B.device)
    pixel_BS = pixel_S - start_B[:, None]
    outside_BS = (pixel_BS < 0) | (pixel_BS >= length_B[:, None])
    pixel_BS = (pixel_BS + 0.5).masked_fill_(outside_BS, _FAR)
    width_B1 = step_B.clamp_min(1.0)[:, None]
    weight_BTS = (pixel_BS / width_B1)[:, None, :] - (center_BT / width_B1)[:, :, None]
    # This is minus the triangle; normalization cancels the sign.
    weight_BTS.abs_().clamp_max_(1.0).sub_(1.0)
    return weight_BTS.div_(weight_BTS.sum(dim=2, keepdim=True))


def resample(x_BCHW: Tensor, rows_BTH: Tensor, columns_BTW: Tensor) -> Tensor:
    """Return ``rows · x · columnsᵀ`` of each image and channel, (B, C, T, T') float32."""
    batch, channels, height, width = x_BCHW.shape
    x_BNW = x_BCHW.reshape(batch, channels * height, width)
    wide_BCHT = torch.bmm(x_BNW, columns_BTW.mT).view(batch, channels, height, -1)
    out_BCTT = wide_BCHT.new_empty(batch, channels, rows_BTH.shape[1], columns_BTW.shape[1])
    for channel in range(channels):
        # One product per channel; broadcasting would first copy the rows for every channel.
        out_BCTT[:, channel] = torch.bmm(rows_BTH, wide_BCHT[:, channel])
    return out_BCTT


def crop_resize_flip(images_BHWC: Tensor, boxes: Boxes, flip_B: Tensor, size: int) -> Tensor:
    """Crop each image's rectangle, resize it to ``size``, and flip it where ``flip_B`` holds.

    Matches torchvision's ``resized_crop(..., antialias=True)`` and ``horizontal_flip`` on float
    images up to rounding.

    Args:
        images_BHWC: uint8.

    Returns:
        (B, C, size, size) float32 in [0, 1] up to rounding.
    """
    batch, height, width, channels = images_BHWC.shape
    x_BCHW = torch.empty(
        batch, channels, height, width, dtype=torch.float32, device=images_BHWC.device
    )
    x_BCHW.copy_(images_BHWC.permute(0, 3, 1, 2))
    rows_BTH = interpolation_matrix(boxes.top_B, boxes.height_B, height, size)
    columns_BTW = interpolation_matrix(boxes.left_B, boxes.width_B, width, size, flip_B)
    # Rescale to [0, 1] in the smallest operand.
    return resample(x_BCHW, rows_BTH, columns_BTW.mul_(1.0 / 255.0))


def resize_center_crop(images_BHWC: Tensor, size: int) -> Tensor:
    """Resize the shorter side to ``size`` (bilinear, antialiased), then center-crop.

    Returns:
        (B, C, size, size) float32 in [0, 1]; not resampled if the size already matches.
    """
    x_BCHW = images_BHWC.permute(0, 3, 1, 2).to(torch.float32).div_(255.0)
    x_BCHW = tv.resize(x_BCHW, [size], antialias=True)
    return tv.center_crop(x_BCHW, [size, size]).clamp_(0.0, 1.0).contiguous()
