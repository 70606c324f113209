"""The stem for small images: one 3x3 convolution in place of a network's own first layers."""

import timm
from torch import nn

from ssdistill.errors import UserError

SMALL_IMAGE = 64
"""Up to this side, ``stem: auto`` takes the small-image stem."""
STEM_OF_MODULE = {"resnet": "conv1", "mobilenetv3": "conv_stem", "efficientnet": "conv_stem"}
"""Attribute that holds the first convolution, by timm module."""


def has_small_stem(name: str) -> bool:
    """Whether a timm model's first convolution is known, so that it can be replaced."""
    family = timm.models.model_entrypoint(name) if timm.is_model(name) else None
    return family is not None and family.__module__.rsplit(".", 1)[-1] in STEM_OF_MODULE


def takes_small_stem(name: str, image_size: int) -> bool:
    """Whether ``stem: auto`` is the small one for a timm model and images of that side."""
    return image_size <= SMALL_IMAGE and has_small_stem(name)


def fit_small_stem(net: nn.Module, stride: int, padding: int) -> None:
    """Replace the first convolution by a 3x3 one and drop a max-pool after it.

    Raises:
        UserError: an architecture whose first convolution is not known.
    """
    attribute = next((a for a in ("conv1", "conv_stem") if hasattr(net, a)), None)
    if attribute is None:
        raise UserError(f"stem=small is not supported for {type(net).__name__}; use stem=native")
    old = getattr(net, attribute)
    first = next(m for m in old.modules() if isinstance(m, nn.Conv2d))
    last = [m for m in old.modules() if isinstance(m, nn.Conv2d)][-1]
    biased = last.bias is not None
    conv = nn.Conv2d(first.in_channels, last.out_channels, 3, stride, padding, bias=biased)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    setattr(net, attribute, conv)
    if hasattr(net, "maxpool"):
        net.maxpool = nn.Identity()
