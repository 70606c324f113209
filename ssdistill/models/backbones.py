"""timm encoders with built-in normalization, resizing and feature taps."""

from functools import cached_property
from typing import Any, cast

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ssdistill.errors import UserError, nearest
from ssdistill.models import final_patches as final_taps
from ssdistill.models import taps as places
from ssdistill.models.examples import black_image, noise_images
from ssdistill.models.model import Model
from ssdistill.models.networks import create_own_net, find_network
from ssdistill.models.representation import Representation
from ssdistill.models.spec import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Channels,
    EncoderSettings,
    EncoderSpec,
)
from ssdistill.models.stems import fit_small_stem, takes_small_stem
from ssdistill.models.timm_net import check_timm_name, create_timm_net
from ssdistill.models.torchvision_net import create_torchvision_net
from ssdistill.models.trial import (
    COMPUTED_SIDE,
    LARGEST_SIDE,
    REFUSALS,
    check_encodes,
    refusing,
    trial_of,
)
from ssdistill.settings import Size, as_size, as_written, height_width, size_text


class Encoder(Model):
    """A backbone that takes images in [0, 1], and resizes and normalizes them itself.

    Attributes:
        spec: how it was built.
        net: the timm model without classifier, or torchvision's in a timm-like shell.
        embed_dim: width of the embedding.
        taps: names of what to return in ``maps``, see :mod:`ssdistill.models.taps`.
        projector: the head the encoder was pretrained with, where it has been kept.
        project: whether ``forward`` returns the projector's output too.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: EncoderSpec, net: nn.Module):
        super().__init__()
        self.spec, self.net = spec, net
        # MobileNet-like heads widen after pooling: num_features is not what forward_head returns.
        self.embed_dim = getattr(net, "head_hidden_size", None) or cast("int", net.num_features)
        self._closing: dict[str, places.Closing] | None = None
        self._caught: dict[str, Tensor] = {}
        self._hooks: list[RemovableHandle] = []
        self.taps = ()
        self.projector: nn.Module | None = None
        self.project = False
        for name in ("mean", "std"):
            value = torch.tensor(getattr(spec, name)).view(1, -1, 1, 1)
            self.register_buffer(name, value, persistent=False)

    @property
    def name(self) -> str:
        return self.spec.name

    def example(self, count: int) -> Tensor:
        """Uniform noise (count, C, H, W) in [0, 1], of the spec's channels and image size."""
        return noise_images(self.spec, count).to(self.mean)

    def fresh_net(self) -> nn.Module:
        return encoder_from_spec(self.spec).net

    def forward(self, x_BCHW: Tensor) -> Representation:
        """Encode images.

        Args:
            x_BCHW: float images in [0, 1], unnormalized. Where the spec has an ``input_size``,
                views of every size are brought to it (bicubic, antialiased, kept in [0, 1]).

        Returns:
            embedding (B, embed_dim), maps named in ``taps``, projection if ``project`` is set.
        """
        x_BCHW = self._prepared(x_BCHW)
        stages = final_taps.stages_behind(self.taps)
        if stages:
            final, maps = places.stage_maps(self.net, x_BCHW, stages)
        else:
            final, maps = cast("Any", self.net).forward_features(x_BCHW), {}
        maps |= self._caught
        self._caught.clear()
        final_taps.add_final_maps(self.net, final, maps, self.taps, x_BCHW.shape[2:])
        return self._represent(final, {name: maps[name] for name in self.taps})

    def features(self, x_BCHW: Tensor) -> Tensor:
        """Return what timm's ``forward_features`` does: tokens (B, T, D) or a map.

        Args:
            x_BCHW: float images in [0, 1], as for :meth:`forward`.
        """
        return cast("Any", self.net).forward_features(self._prepared(x_BCHW))

    def _prepared(self, x_BCHW: Tensor) -> Tensor:
        """Resize images to the spec's input size, and normalize them."""
        size = self.spec.input_size and height_width(self.spec.input_size)
        if size is not None and x_BCHW.shape[2:] != size:
            # torch resizes with antialiasing in float32 only.
            with torch.autocast(x_BCHW.device.type, enabled=False):
                x_BCHW = F.interpolate(x_BCHW.float(), size, mode="bicubic", antialias=True).clamp(
                    0, 1
                )
        return (x_BCHW - self.mean) / self.std

    def _represent(self, features: Tensor, maps: dict[str, Tensor]) -> Representation:
        embedding_BD = cast("Any", self.net).forward_head(features, pre_logits=True)
        projection_BP = cast("nn.Module", self.projector)(embedding_BD) if self.project else None
        return Representation(embedding_BD, projection_BP, maps)

    @property
    def projection_dim(self) -> int | None:
        """Width of the projection; None without a projector."""
        if self.projector is None:
            return None
        return [m for m in self.projector.modules() if isinstance(m, nn.Linear)][-1].out_features

    @property
    def tap_names(self) -> list[str]:
        """Names that ``taps`` may contain: stages, attention, stages before a ReLU, patches."""
        stages = list(dict.fromkeys(places.stage_names(self.net)))
        return [
            *stages,
            *(places.ATTENTION + block for block in places.class_token_attention(self.net)),
            *(places.BEFORE_RELU + stage for stage in self._closing_relus()),
            *(final_taps.FINAL + name for name in final_taps.normed_stages(self.net, stages)),
            *([final_taps.FINAL_PATCHES] if self._has_final_patches else []),
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
                        f"available: {', '.join(known) or 'none'}"
                    )
        self.taps = taps

    def stage_norms(self) -> dict[str, tuple[Tensor, Tensor]]:
        """(mean_C, std_C) of the batch norm before the ReLU that closes a stage, by stage."""
        return places.norm_outputs(self.net, self._closing_relus())

    def map_shapes(self) -> dict[str, tuple[int, int, int]]:
        """(C, H, W) of every tapped map, found by encoding one black image in eval mode."""
        size = self.spec.image_size
        black_1CHW = black_image(self, size)
        maps: dict[str, Tensor] | None = None
        with places.looking(self):
            with trial_of(self, size):
                maps = self(black_1CHW).maps
            if maps is None:  # only numbers tell
                maps = self(black_1CHW).maps
        return {name: (m.shape[1], m.shape[2], m.shape[3]) for name, m in maps.items()}

    @property
    def caught(self) -> dict[str, Tensor]:
        """What hooks have caught for taps since the last forward pass."""
        return dict(self._caught)

    @caught.setter
    def caught(self, maps: dict[str, Tensor]) -> None:
        self._caught.clear()
        self._caught.update(maps)

    @cached_property
    def _has_final_patches(self) -> bool:
        return final_taps.has_final_patches(self)

    def _closing_relus(self) -> dict[str, places.Closing]:
        if self._closing is None:
            size = height_width(self.spec.size)
            try:
                self._closing = places.closing_relus_at(self, [min(s, COMPUTED_SIDE) for s in size])
            except REFUSALS:  # a network of one size
                self._closing = places.closing_relus_at(self, size)
        return self._closing


def build_encoder(
    settings: EncoderSettings,
    image_size: Size,
    mean: Channels = IMAGENET_MEAN,
    std: Channels = IMAGENET_STD,
) -> Encoder:
    """A fresh encoder for images of ``image_size`` pixels and as many channels as ``mean`` has.

    ``mean`` and ``std`` are the data's statistics. Pretrained weights bring their own, for images
    of three channels; for others timm adapts the first layer.

    Raises:
        UserError: unknown timm name or argument, or an architecture that cannot take the size.
    """
    side = max(height_width(settings.input_size or image_size))
    if side > LARGEST_SIDE:
        raise UserError(f"encoder.input_size={side} is too large: use at most {LARGEST_SIDE}")
    small = settings.stem == "small"
    if settings.stem == "auto":
        small = takes_small_stem(settings.name, side)
    own = find_network(settings.name)
    if own and settings.pretrained:
        raise UserError(
            f"encoder.pretrained: '{own.name}' is a network of {own.package}, and timm has no "
            "weights for it; set encoder.pretrained=false"
        )
    if settings.pretrained:
        check_timm_name(settings.name)
        config = timm.get_pretrained_cfg(settings.name)
        if config and len(config.mean) == len(mean):
            # timm does not say how many channels its networks take: three of each.
            mean, std = cast("Channels", config.mean), cast("Channels", config.std)
    spec = EncoderSpec(
        name=settings.name,
        args=settings.args,
        stem="small" if small else "native",
        stem_stride=settings.stem_stride,
        stem_padding=settings.stem_padding,
        image_size=image_size,
        input_size=settings.input_size,
        mean=mean,
        std=std,
        library=own.package if own else "timm",
    )
    encoder = encoder_from_spec(spec, pretrained=settings.pretrained)
    check_encodes(encoder, spec.image_size)
    return encoder


def encoder_from_spec(spec: EncoderSpec, pretrained: bool = False) -> Encoder:
    """Build the encoder of a spec, with random or timm's pretrained weights.

    Raises:
        UserError: an unknown name or argument, a size the architecture cannot take, or
            pretrained weights that cannot be had.
    """
    if spec.library == "torchvision":
        net = create_torchvision_net(spec.name, spec.args, spec.in_chans)
        return encoder_around(spec, net)
    if spec.library != "timm":
        return encoder_around(spec, create_own_net(spec))
    return encoder_around(spec, create_timm_net(spec, pretrained))


def encoder_around(spec: EncoderSpec, net: nn.Module) -> Encoder:
    """Wrap a network as the encoder of a spec, replacing its stem if the spec says so.

    Raises:
        UserError: a size the network cannot take, or a stem it cannot have.
    """
    patches = getattr(net, "patch_embed", None)
    fixed = getattr(patches, "img_size", None)
    strict = getattr(patches, "strict_img_size", True)
    if fixed and strict and tuple(fixed) != height_width(spec.size):
        size_key = "encoder.input_size" if spec.input_size else "the data"
        takes, given = (as_written(as_size(*size)) for size in (fixed, height_width(spec.size)))
        raise UserError(
            f"'{spec.name}' takes {fixed[0]}x{fixed[1]} images, but {size_key} is "
            f"{size_text(spec.size)}: set encoder.args.img_size={given}, "
            f"encoder.input_size={takes} or data.image_size={takes}"
        )
    with refusing(f"'{spec.name}' cannot be an encoder"):
        if spec.stem == "small":
            fit_small_stem(net, spec.stem_stride, spec.stem_padding)
        return Encoder(spec, net)
