"""What every pass of images through an encoder does: checks, eval mode, device, precision."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from ssdistill.errors import UserError, nearest

Precision = Literal["fp32", "bf16"]
PRECISIONS = ("fp32", "bf16")
PIXEL_TYPES = (np.uint8, np.float32, torch.uint8, torch.float32)
"""Types of pixels that a view is made of."""


def check_precision(precision: str) -> None:
    """Raise UserError unless images can be encoded in ``precision``."""
    if precision not in PRECISIONS:
        raise UserError(
            f"unknown precision '{precision}'{nearest(precision, PRECISIONS)}; "
            f"choose one of {', '.join(PRECISIONS)}"
        )


def default_batch_size(device: torch.device) -> int:
    """Return how many images are encoded at a time where nothing else is specified.

    A CPU's caches hold no more than 64, and its allocator gives larger tensors back each time.
    """
    return 64 if device.type == "cpu" else 512


def check_images(images_NHWC: Any, encoder: Any) -> None:
    """Raise UserError unless these are images (N, H, W, C) that the encoder takes."""
    shape, dtype = tuple(images_NHWC.shape), images_NHWC.dtype
    if dtype not in PIXEL_TYPES or len(shape) != 4 or 0 in shape:
        raise UserError(
            "images must be a non-empty array (N, H, W, C) of uint8, or of float32 in [0, 1], got "
            f"{dtype} {shape}"
        )
    mean = getattr(getattr(encoder, "spec", None), "mean", None)
    if mean is not None and len(mean) != shape[3]:
        raise UserError(
            f"the encoder takes {len(mean)} channel{'s' if len(mean) > 1 else ''}, got images "
            f"{dtype} {shape}; pass (N, H, W, {len(mean)})"
        )


def check_range(images_BHWC: Any) -> None:
    """Raise UserError unless floats are in [0, 1]."""
    if images_BHWC.dtype in (np.uint8, torch.uint8):
        return
    low, high = float(images_BHWC.min()), float(images_BHWC.max())
    if not 0 <= low <= high <= 1:
        raise UserError(
            f"float32 images must be in [0, 1], got values from {low:g} to {high:g}; rescale them"
        )


def cast_to(device: torch.device, precision: Precision) -> Any:
    """Return the context in which an encoder computes in ``precision``."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def target_of(encoder: Any, device: str | torch.device | None) -> torch.device:
    """Return where to encode: ``device``, or by default where the encoder is."""
    parameters = encoder.parameters() if isinstance(encoder, nn.Module) else ()
    home = next((t.device for t in parameters), torch.device("cpu"))
    return home if device is None else torch.device(device)


@contextmanager
def evaluating(encoder: Any, device: str | torch.device | None) -> Iterator[torch.device]:
    """Eval mode on ``device``; restores every module's mode and device afterwards."""
    if not isinstance(encoder, nn.Module):
        yield target_of(encoder, device)
        return
    home, target_device = target_of(encoder, None), target_of(encoder, device)
    modes = [(module, module.training) for module in encoder.modules()]
    try:
        encoder.eval()
        if target_device != home:
            encoder.to(target_device)
        yield target_device
    finally:
        for module, mode in modes:
            module.training = mode
        if target_device != home:
            encoder.to(home)
