"""Example images for testing, tracing and timing encoders, of the channels and size they take."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ssdistill.models.spec import EncoderSpec
from ssdistill.settings import Size, height_width

if TYPE_CHECKING:
    from ssdistill.models.backbones import Encoder


def noise_images(spec: EncoderSpec, count: int) -> Tensor:
    """Return uniform noise (count, C, H, W) in [0, 1], on the CPU, the same in every call."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, spec.in_chans, *height_width(spec.image_size), generator=generator)


def black_image(encoder: "Encoder", size: Size) -> Tensor:
    """Return a black image (1, C, H, W) of ``size`` pixels, on the device of the encoder."""
    return encoder.mean.new_zeros(1, encoder.mean.shape[1], *height_width(size))
