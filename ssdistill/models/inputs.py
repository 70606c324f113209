"""Checks of an encoder's input: uint8 images, or float images in [0, 1]."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ssdistill.errors import UserError
from ssdistill.models.downloads import reason
from ssdistill.models.spec import RGB
from ssdistill.settings import height_width, size_text

MARGIN = 1e-3
"""Tolerance beyond [0, 1] for values changed by rounding and resizing."""
SIZE_ERRORS = (AssertionError, RuntimeError, ValueError, IndexError)
"""Exceptions of networks for an unsupported image size."""


def as_images(x: Any, name: str, channels: int | None = RGB) -> Tensor:
    """``x`` as float images: uint8 is divided by 255, floats of any width stay as they are.

    Args:
        x: what an encoder was called with.
        name: of the encoder, for messages.
        channels: of the images it takes, for messages; None where that is not known.

    Raises:
        UserError: no tensor, or one of other integers, booleans or complex numbers.
    """
    if not isinstance(x, Tensor):
        raise UserError(
            f"{name} takes a torch.Tensor (B, {channels or 'C'}, H, W), got {type(x).__name__}: "
            "convert it with torch.as_tensor"
        )
    if x.layout is not torch.strided:
        raise UserError(f"{name} takes a dense tensor, got {x.layout}: convert it with .to_dense()")
    if x.dtype == torch.uint8:
        return x.float() / 255
    if not x.is_floating_point():
        raise UserError(
            f"{name} takes uint8 images or float images in [0, 1], got {x.dtype}: "
            "convert whole numbers from 0 to 255 with .to(torch.uint8)"
        )
    return x


def check_images(
    x_BCHW: Tensor, name: str, look_at_values: bool = True, channels: int | None = RGB
) -> None:
    """Reject a batch that is not made of images in [0, 1].

    Args:
        x_BCHW: of floats.
        name: of the encoder, for messages.
        look_at_values: False checks the shape alone.
        channels: of the images it takes; None where that is not known.

    Raises:
        UserError: another rank or number of channels, values outside [0, 1] or NaN.
    """
    _check_shape(x_BCHW, name, channels)
    if not look_at_values or not x_BCHW.numel():
        return
    low, high = (float(value) for value in x_BCHW.detach().aminmax())
    if low >= -MARGIN and high <= 1 + MARGIN:
        return
    expected = f"{name} takes uint8 images or float images in [0, 1]"
    if low != low or high != high:
        raise UserError(f"{expected}, got NaN: remove or replace NaN values")
    remedy = "divide by 255 or pass uint8" if low >= 0 and high <= 255 else (
        "pass unnormalized images; normalization is built in"
    )  # fmt: skip
    raise UserError(f"{expected}, got values from {low:.4g} to {high:.4g}: {remedy}")


def _check_shape(x_BCHW: Tensor, name: str, channels: int | None) -> None:
    shape = tuple(x_BCHW.shape)
    right = len(shape) == 4 and shape[1] == (channels or shape[1])
    if right and min(shape[1:]) > 0:
        return
    remedy = "bring images to three channels"
    if channels != RGB:
        remedy = f"pass the {channels} channels it was trained on, in their order"
    if 0 in shape[1:]:
        remedy = "remove the axis of size 0"
    elif len(shape) == 3:
        remedy = "add the batch axis with x[None]"
    elif len(shape) == 5:
        remedy = "merge batches and views with x.flatten(0, 1)"
    elif len(shape) == 4 and shape[-1] == channels:
        remedy = "move the channels with x.permute(0, 3, 1, 2)"
    elif len(shape) == 4 and shape[1] == 1 and channels == RGB:
        remedy = "repeat the gray channel with x.expand(-1, 3, -1, -1)"
    raise UserError(
        f"{name} takes images of shape (B, {channels or 'C'}, H, W), got {shape}: {remedy}"
    )


def call_checked(encoder: Any, call: Callable[[Tensor], Any], x: Any) -> Any:
    """Check images, then encode them with a PyTorch encoder.

    While the network is traced or trained only shapes and types are looked at.

    Raises:
        UserError: see :func:`as_images` and :func:`check_images`; a size the network cannot take.
    """
    channels = encoder.spec.in_chans
    x_BCHW = as_images(x, encoder.name, channels)
    if x_BCHW.is_meta or type(x_BCHW) not in (Tensor, torch.nn.Parameter) or _is_traced():
        return call(x_BCHW)
    check_images(x_BCHW, encoder.name, not encoder.training, channels)
    try:
        return call(x_BCHW.to(encoder.mean.dtype))
    except torch.OutOfMemoryError:
        raise
    except SIZE_ERRORS as error:
        size, own = tuple(x_BCHW.shape[2:]), encoder.spec.image_size
        if size == height_width(own):
            raise
        raise UserError(
            f"{encoder.name} cannot take images of {size[0]}x{size[1]} pixels ({reason(error)}): "
            f"resize them to {size_text(own)}"
        ) from error


def _is_traced() -> bool:
    return torch.compiler.is_compiling() or torch.jit.is_tracing()
