"""timm encoders that carry their own normalisation, input size and feature taps."""

from typing import Any, Literal

import timm
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ssdistill.errors import UserError, nearest
from ssdistill.models import taps as places
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
        args: further keyword arguments of ``timm.create_model``, e.g. ``{layers: [1, 1, 1, 1]}``.
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
        taps: names of what to return in ``maps``, see :mod:`ssdistill.models.taps`.
        projector: the head the encoder was pretrained with, where it has been kept.
        project: whether ``forward`` returns the projector's output too.
    """

    def __init__(self, spec: EncoderSpec, net: nn.Module):
        super().__init__()
        self.spec, self.net = spec, net
        # MobileNet-like heads widen after pooling: num_features is not what forward_head returns.
        self.embed_dim: int = getattr(net, "head_hidden_size", None) or net.num_features
        self._closing: dict[str, places.Closing] | None = None
        self._caught: dict[str, Tensor] = {}
        self._hooks: list[RemovableHandle] = []
        self.taps = ()
        self.projector: nn.Module | None = None
        self.project = False
        for name in ("mean", "std"):
            value = torch.tensor(getattr(spec, name)).view(1, 3, 1, 1)
            self.register_buffer(name, value, persistent=False)

    def forward(self, x_BCHW: Tensor) -> Representation:
        """Encode images.

        Args:
            x_BCHW: float images in [0, 1], un-normalised.

        Returns:
            embedding (B, embed_dim), the maps named in ``taps`` and, where ``project`` is set,
            the projection.
        """
        x_BCHW = (x_BCHW - self.mean) / self.std
        stages = [name for name in self.taps if ":" not in name]
        if stages:
            final, maps = places.stage_maps(self.net, x_BCHW, stages)
        else:
            final, maps = self.net.forward_features(x_BCHW), {}
        maps |= self._caught
        self._caught.clear()
        return self._represent(final, {name: maps[name] for name in self.taps})

    def _represent(self, features: Tensor, maps: dict[str, Tensor]) -> Representation:
        embedding_BD = self.net.forward_head(features, pre_logits=True)
        projection_BP = self.projector(embedding_BD) if self.project else None
        return Representation(embedding_BD, projection_BP, maps)

    @property
    def projection_dim(self) -> int | None:
        """Width of the projection; None without a projector."""
        if self.projector is None:
            return None
        return [m for m in self.projector.modules() if isinstance(m, nn.Linear)][-1].out_features

    @property
    def tap_names(self) -> list[str]:
        """Names that ``taps`` may contain: stages, then attention, then stages before a ReLU."""
        return [
            *dict.fromkeys(places.stage_names(self.net)),
            *(places.ATTENTION + block for block in places.class_token_attention(self.net)),
            *(places.BEFORE_RELU + stage for stage in self._closing_relus()),
        ]

    @property
    def taps(self) -> tuple[str, ...]:
        return self._taps

    @taps.setter
    def taps(self, names: tuple[str, ...]) -> None:
        for hook in self._hooks:
            hook.remove()
        self._caught.clear()
        needed = any(name.startswith(places.BEFORE_RELU) for name in names)
        closing = self._closing_relus() if needed else {}
        self._hooks = places.catch(self.net, names, closing, self._caught)
        self._taps = tuple(names)

    def set_taps(self, taps: tuple[str, ...]) -> None:
        """Choose what ``forward`` returns in ``maps``.

        Raises:
            UserError: for a name the architecture does not have.
        """
        # Finding the closing ReLUs takes a forward pass, which plain stages can do without.
        if not set(taps) <= set(places.stage_names(self.net)):
            known = self.tap_names
            for name in taps:
                if name not in known:
                    raise UserError(
                        f"{self.spec.name} has no feature map '{name}'{nearest(name, known)}; "
                        f"it has {', '.join(known) or 'none'}"
                    )
        self.taps = taps

    def stage_norms(self) -> dict[str, tuple[Tensor, Tensor]]:
        """(mean_C, std_C) of the batch norm before the ReLU that closes a stage, by stage."""
        return places.norm_outputs(self.net, self._closing_relus())

    def map_shapes(self) -> dict[str, tuple[int, int, int]]:
        """(C, H, W) of every tapped map, found by encoding one black image in eval mode."""
        size = self.spec.image_size
        with places.looking(self):
            maps = self(self.mean.new_zeros(1, 3, size, size)).maps
        return {name: tuple(m.shape[1:]) for name, m in maps.items()}

    def _closing_relus(self) -> dict[str, places.Closing]:
        if self._closing is None:
            size = self.spec.image_size
            noise_BCHW = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
            with places.looking(self):
                self._closing = places.closing_relus(self.net, noise_BCHW.to(self.mean))
        return self._closing


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
