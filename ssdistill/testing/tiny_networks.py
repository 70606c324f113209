"""Networks that train in a fraction of a second, with random weights."""

from typing import Any

import torch

from ssdistill.models.backbones import Encoder, build_encoder
from ssdistill.models.spec import Channels, EncoderSettings

NAME, STEM = "resnet10t", {"stem_type": "deep", "stem_width": 8}
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.2)


def tiny_cnn(seed: int | None = 0, **args: Any) -> Encoder:
    """A two-block ResNet for 16x16 images, 16-dimensional; None leaves torch's seed alone."""
    if seed is not None:
        torch.manual_seed(seed)
    given = {"layers": (1, 1, 0, 0), "channels": (8, 16, 16, 16), **STEM, **args}
    return build_encoder(EncoderSettings(name=NAME, args=given, stem_stride=2), 16)


def three_stages(channels: tuple[int, ...], side: int) -> Encoder:
    """A ResNet of three stages for images of ``side`` pixels."""
    args = {"layers": (1, 1, 1, 0), "channels": channels, **STEM}
    return build_encoder(EncoderSettings(name=NAME, args=args, stem_stride=2), side)


def normalized_cnn() -> Encoder:
    """:func:`tiny_cnn` for images of other statistics, no residual branch of which is zero."""
    torch.manual_seed(0)
    args = {"layers": (1, 1, 0, 0), "channels": (8, 16, 16, 16), **STEM, "zero_init_last": False}
    settings = EncoderSettings(name=NAME, args=args, stem_stride=2)
    return build_encoder(settings, 16, MEAN, STD).eval()


def transformer(width: int, patch_size: int, side: int, depth: int = 4, heads: int = 4) -> Encoder:
    """A vision transformer for images of ``side`` pixels."""
    args = {"img_size": side, "patch_size": patch_size, "embed_dim": width}
    args |= {"depth": depth, "num_heads": heads}
    return build_encoder(EncoderSettings(name="vit_tiny_patch16_224", args=args), side)


def tiny_transformer(seed: int = 0, depth: int = 2) -> Encoder:
    """One of 16x16 images and 32 dimensions."""
    torch.manual_seed(seed)
    return transformer(32, 4, 16, depth=depth, heads=2)


def named_encoder(
    settings: EncoderSettings, side: int | tuple[int, int], mean: Channels, std: Channels
) -> Encoder:
    """An encoder of a network's name, from one seed, in eval mode."""
    torch.manual_seed(0)
    return build_encoder(settings, side, mean, std).eval()
