"""timm encoders that carry their own normalisation, input size and feature taps."""

from typing import Any, Literal

import timm
import torch
from pydantic import Field
from torch import Tensor, nn

from ssdistill.errors import UserError, nearest
from ssdistill.models.representation import Representation
from ssdistill.settings import PositiveInt, Settings

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SMALL_IMAGE = 64
"""Up to this side, ``stem: auto`` takes the small-image stem."""


class EncoderSettings(Settings):
    """How to build an encoder.

    Args:
        name: any timm model name.
        args: further keyword arguments of ``timm.create_model``, e.g. ``{layers: [1, 1, 1]}``.
        stem: ``native`` is timm's own; ``small`` is a 3x3 convolution without max-pooling
            (the CIFAR stem); ``auto`` takes ``small`` up to 64 pixels a side where the
            architecture has a known stem, ``native`` otherwise.
        stem_stride: stride of the small stem.
        pretrained: start from timm's pretrained weights (downloads) and use their statistics.
    """

    name: str = "resnet18"
    args: dict[str, Any] = Field(default={})
    stem: Literal["auto", "native", "small"] = "auto"
    stem_stride: PositiveInt = 1
    pretrained: bool = False


class EncoderSpec(Settings):
    """Everything needed to build the same encoder again, as stored in ``model.json``."""

    name: str
    args: dict[str, Any] = Field(default={})
    stem: Literal["native", "small"] = "native"
    stem_stride: int = 1
    image_size: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD


class Encoder(nn.Module):
    """A timm backbone that takes images in [0, 1] and normalises them itself.

    Attributes:
        spec: how it was built.
        net: the timm model without classifier.
        embed_dim: width of the embedding.
        taps: names of feature maps to return (``feature_info`` module names, e.g. ``layer3``).
    """

    def __init__(self, spec: EncoderSpec, net: nn.Module):
        super().__init__()
        self.spec, self.net = spec, net
        # MobileNet-like heads widen after pooling: num_features is not what forward_head returns.
        self.embed_dim: int = getattr(net, "head_hidden_size", None) or net.num_features
        self.taps: tuple[str, ...] = ()
        for name in ("mean", "std"):
            value = torch.tensor(getattr(spec, name)).view(1, 3, 1, 1)
            self.register_buffer(name, value, persistent=False)

    def forward(self, x_BCHW: Tensor) -> Representation:
        """Encode images.

        Args:
            x_BCHW: float images in [0, 1], un-normalised.

        Returns:
            embedding (B, embed_dim) and the maps named in ``taps``.
        """
        x_BCHW = (x_BCHW - self.mean) / self.std
        if not self.taps:
            return Representation(self._pool(self.net.forward_features(x_BCHW)))
        indices = [self.tap_names.index(name) for name in self.taps]
        final, maps = self.net.forward_intermediates(
            x_BCHW, indices=indices, norm=False, output_fmt="NCHW"
        )
        # timm returns maps in depth order, whatever the order of `indices`.
        ordered = sorted(zip(indices, self.taps, strict=True))
        by_name = {name: m for (_, name), m in zip(ordered, maps, strict=True)}
        return Representation(self._pool(final), maps=by_name)

    def _pool(self, features: Tensor) -> Tensor:
        return self.net.forward_head(features, pre_logits=True)

    @property
    def tap_names(self) -> list[str]:
        """Names that ``taps`` may contain, from shallow to deep."""
        return [info["module"] for info in self.net.feature_info]

    def set_taps(self, taps: tuple[str, ...]) -> None:
        """Choose the feature maps ``forward`` returns.

        Raises:
            UserError: for a name the architecture does not have.
        """
        for name in taps:
            if name not in self.tap_names:
                raise UserError(
                    f"{self.spec.name} has no feature map '{name}'"
                    f"{nearest(name, self.tap_names)}; it has {', '.join(self.tap_names)}"
                )
        self.taps = tuple(taps)

    @torch.no_grad()
    def map_shapes(self) -> dict[str, tuple[int, int, int]]:
        """(C, H, W) of every tapped map, found by encoding one black image in eval mode."""
        was_training = self.training
        self.eval()
        size = self.spec.image_size
        maps = self(self.mean.new_zeros(1, 3, size, size)).maps
        self.train(was_training)
        return {name: tuple(m.shape[1:]) for name, m in maps.items()}


def build_encoder(
    settings: EncoderSettings,
    image_size: int,
    mean: tuple[float, float, float] = IMAGENET_MEAN,
    std: tuple[float, float, float] = IMAGENET_STD,
) -> Encoder:
    """A fresh encoder for square images of ``image_size`` pixels.

    ``mean`` and ``std`` are the data's statistics; pretrained weights bring their own.

    Raises:
        UserError: unknown timm name or argument, or an architecture that cannot take the size.
    """
    small = _wants_small_stem(settings, image_size)
    if settings.pretrained and timm.is_model(settings.name):
        config = timm.get_pretrained_cfg(settings.name)
        mean, std = config.mean, config.std
    spec = EncoderSpec(
        name=settings.name,
        args=settings.args,
        stem="small" if small else "native",
        stem_stride=settings.stem_stride,
        image_size=image_size,
        mean=mean,
        std=std,
    )
    return encoder_from_spec(spec, pretrained=settings.pretrained)


def encoder_from_spec(spec: EncoderSpec, pretrained: bool = False) -> Encoder:
    """The encoder a spec describes, with fresh (or timm's pretrained) weights."""
    if not timm.is_model(spec.name):
        raise UserError(f"timm has no model '{spec.name}'{nearest(spec.name, timm.list_models())}")
    try:
        net = timm.create_model(spec.name, pretrained=pretrained, num_classes=0, **spec.args)
    except TypeError as error:
        raise UserError(f"encoder.args of '{spec.name}': {error}") from error
    fixed = getattr(getattr(net, "patch_embed", None), "img_size", None)
    if fixed and tuple(fixed) != (spec.image_size, spec.image_size):
        raise UserError(
            f"'{spec.name}' takes {fixed[0]}x{fixed[1]} images, the data is "
            f"{spec.image_size}x{spec.image_size}: set encoder.args.img_size={spec.image_size} "
            f"or data.image_size={fixed[0]}"
        )
    if spec.stem == "small":
        _fit_small_stem(net, spec.stem_stride)
    return Encoder(spec, net)


def _wants_small_stem(settings: EncoderSettings, image_size: int) -> bool:
    if settings.stem == "auto":
        family = (
            timm.models.model_entrypoint(settings.name) if timm.is_model(settings.name) else None
        )
        known = family is not None and family.__module__.rsplit(".", 1)[-1] in STEM_OF_MODULE
        return known and image_size <= SMALL_IMAGE
    return settings.stem == "small"


STEM_OF_MODULE = {"resnet": "conv1", "mobilenetv3": "conv_stem", "efficientnet": "conv_stem"}
"""Attribute that holds the first convolution, by timm module."""


def _fit_small_stem(net: nn.Module, stride: int) -> None:
    """Replace the first convolution by a 3x3 one of ``stride`` and drop a max-pool after it."""
    attribute = next((a for a in ("conv1", "conv_stem") if hasattr(net, a)), None)
    if attribute is None:
        raise UserError(f"stem=small is not known for {type(net).__name__}; use stem=native")
    old = getattr(net, attribute)
    first = next(m for m in old.modules() if isinstance(m, nn.Conv2d))
    last = [m for m in old.modules() if isinstance(m, nn.Conv2d)][-1]
    conv = nn.Conv2d(first.in_channels, last.out_channels, 3, stride, 1, bias=last.bias is not None)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    setattr(net, attribute, conv)
    if hasattr(net, "maxpool"):
        net.maxpool = nn.Identity()
