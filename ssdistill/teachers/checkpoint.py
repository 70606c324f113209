"""Teachers trained by other projects, read from their checkpoint files."""

from typing import Any, Literal, cast

import timm
from torch import Tensor

from ssdistill.errors import UserError
from ssdistill.files import user_path
from ssdistill.models.backbones import Encoder, build_encoder
from ssdistill.models.networks import find_network
from ssdistill.models.spec import IMAGENET_MEAN, IMAGENET_STD, RGB, Channels, EncoderSettings
from ssdistill.models.stems import SMALL_IMAGE, takes_small_stem
from ssdistill.models.timm_net import check_timm_name
from ssdistill.settings import Size, as_size, height_width
from ssdistill.teachers import ImageSpec, Teacher
from ssdistill.teachers.channels import check_channels, check_numbers, first_channels
from ssdistill.teachers.formats.fitting import Fit, fit
from ssdistill.teachers.formats.heads import UnknownHead, build_head, widths
from ssdistill.teachers.formats.layouts import FALLBACK, FORMATS, BranchName, first_names
from ssdistill.teachers.formats.own_names import of_own_network
from ssdistill.teachers.formats.parts import Parts, take_apart
from ssdistill.teachers.formats.reading import read, sha256_of
from ssdistill.teachers.formats.states import flat_state, named_tensors
from ssdistill.teachers.formats.tensors import not_finite
from ssdistill.teachers.sizes import fit_size, size_notices

SOLO_LEARN_PADDING = 2
"""Padding of the first convolution in solo-learn's ResNets for small images."""
MOCO_V3_HEADS = {384: 12}
"""Attention heads of MoCo v3's small transformer by width; weight shapes do not reveal it."""


class Checkpoint(Teacher):
    """Load a backbone from another project's checkpoint file, without executing code from it.

    The file's projector is loaded if its structure is one that the project is known to use.

    Args:
        path: the file, written by safetensors, ``torch.save`` or pickle.
        format: project whose tensor names it uses; ``auto`` infers it from the names.
        encoder: architecture of its backbone. ``stem: auto`` is inferred from the file's first
            convolution; solo-learn's small stem is padded by 2 unless set.
        mean: of the teacher's training images, per channel in [0, 1]; null follows its
            project: simclr (sthalles, Spijkervet, SimCLR v2) takes images unchanged, lightly
            normalizes by ImageNet; a timm file by timm's statistics for the model; else
            networks for small images (small stem, or a fixed side up to 64 pixels) by the
            training images' own statistics, all others by ImageNet's. Images of other than
            three channels are normalized by their own.
        std: likewise.
        input_size: side, or ``[height, width]``, to which it resizes its inputs; null is the
            model's own where that is fixed (transformers) or where it cannot take them as they
            come.
        branch: which network, where the file has both: ``online`` (or ``student``) or
            ``momentum`` (or ``teacher``); ``auto`` is the one the method's authors evaluate.
        allow_missing: accept a file that lacks tensors of the network; they stay random.
        allow_extra: accept a file with backbone tensors unknown to the network; they are ignored.
    """

    kind = "checkpoint"

    def __init__(
        self,
        *,
        path: str,
        format: Literal[
            "auto", "solo-learn", "lightly", "moco", "simclr", "byol", "vissl", "dino", "timm",
            "torchvision",
        ] = "auto",
        encoder: EncoderSettings = EncoderSettings(),
        mean: Channels | None = None,
        std: Channels | None = None,
        input_size: Size | None = None,
        branch: BranchName = "auto",
        allow_missing: bool = False,
        allow_extra: bool = False,
    ):  # fmt: skip
        self.path, self.format, self.settings = user_path(path), format, encoder
        self.statistics = (mean, std)
        self.input_size = input_size or encoder.input_size
        self.branch: BranchName = branch
        self.allow_missing, self.allow_extra = allow_missing, allow_extra

    def identity(self) -> dict[str, Any]:
        try:
            return {"sha256": sha256_of(self.path)}
        except UserError as error:
            raise UserError(f"teacher.path: {error}") from None

    def load(self, image_spec: ImageSpec) -> tuple[Encoder, list[str]]:
        self._check_settings()
        for key, values in zip(("mean", "std"), self.statistics, strict=True):
            check_numbers(values, image_spec, f"teacher.{key}")
        if find_network(self.settings.name):
            return self._load_own_network(image_spec)
        state = flat_state(read(self.path), self.path)
        parts = take_apart(state, self.format, self.branch, self.path)
        settings = self._network(parts)
        mean, std, whose = self._normalization(parts.format, settings, image_spec)
        encoder = build_encoder(settings, image_spec.image_size, mean, std)
        if channels := first_channels(encoder, parts.backbone):
            check_channels(channels, image_spec, str(self.path), "teacher.path")
        self._check_attention(parts, encoder)
        try:
            fitted = fit(
                encoder.net, settings.name, parts.backbone, self.allow_missing, self.allow_extra
            )
        except UserError as error:
            raise UserError(f"{self.path} {error}{self._format_note(parts, state)}") from None
        fit_size(encoder, _native_size(settings))
        notices = [
            _summary(parts, fitted, self._head(parts, encoder)),
            f"{self.path.name}: images are normalized by {whose}",
            *self._warnings(parts, fitted, settings, encoder),
            *size_notices(encoder),
        ]
        return encoder.eval(), notices

    def _load_own_network(self, image_spec: ImageSpec) -> tuple[Encoder, list[str]]:
        """Load a network of a plug-in or a program, which no project's format is known for."""
        for name, value in (("format", self.format), ("branch", self.branch)):
            if value != "auto":
                raise UserError(
                    f"teacher.{name} is for networks of timm, and '{self.settings.name}' is none: "
                    "remove it"
                )
        mean, std = self.statistics
        whose = "teacher.mean and teacher.std"
        if mean is None or std is None:
            mean, std = image_spec.mean, image_spec.std
            whose = "the training images' own statistics; set teacher.mean and teacher.std"
        settings = self.settings.model_copy(update={"input_size": self.input_size})
        encoder = build_encoder(settings, image_spec.image_size, mean, std)
        state = named_tensors(read(self.path), self.path)
        own = of_own_network(state, encoder.net.state_dict())
        try:
            fitted = fit(encoder.net, settings.name, own, self.allow_missing, self.allow_extra)
        except UserError as error:
            raise UserError(f"{self.path} {error}") from None
        name = self.path.name
        odd = not_finite(encoder.net.state_dict())
        return encoder.eval(), [
            f"{name}: loaded {fitted.loaded} of its {len(state)} tensors into '{settings.name}'",
            f"{name}: images are normalized by {whose}",
            *([f"{name}: missing: {', '.join(fitted.missing)}"] if fitted.missing else []),
            *([f"{name}: ignored: {', '.join(fitted.extra)}"] if fitted.extra else []),
            *([f"{name}: {odd}: embeddings will not be finite"] if odd else []),
        ]

    def _format_note(self, parts: Parts, state: dict[str, Tensor]) -> str:
        if self.format != "auto":
            return ""
        how = f"read as {parts.format}"
        if parts.format == FALLBACK:
            how = (
                f"it matches no names of {', '.join(name for name in FORMATS if name != FALLBACK)}"
            )
        return f" ({how}; its first tensors: {first_names(state)})"

    def _check_settings(self) -> None:
        for name in ("pretrained", "weights"):
            if getattr(self.settings, name):
                raise UserError(
                    f"teacher.encoder.{name} cannot be combined with a checkpoint: remove it"
                )
        if (self.statistics[0] is None) != (self.statistics[1] is None):
            found, absent = ("std", "mean") if self.statistics[0] is None else ("mean", "std")
            raise UserError(f"teacher.{found} is set without teacher.{absent}: set both or neither")
        if not find_network(self.settings.name):
            check_timm_name(self.settings.name)

    def _network(self, parts: Parts) -> EncoderSettings:
        """Complete the encoder settings from the file and its project's conventions."""
        settings = self.settings
        update: dict[str, Any] = {"input_size": self.input_size or _fixed_size(settings)}
        if settings.stem == "auto":
            update["stem"] = self._stem(parts.backbone)
        small = update.get("stem", settings.stem) == "small"
        unsaid = "stem_padding" not in settings.model_fields_set
        if small and unsaid and parts.format == "solo-learn":
            update["stem_padding"] = SOLO_LEARN_PADDING
        return settings.model_copy(update=update)

    def _stem(self, backbone: dict[str, Tensor]) -> str:
        name = self.settings.name
        if not takes_small_stem(name, 1):
            return "native"
        if "conv1.weight" in backbone:
            return "small" if backbone["conv1.weight"].shape[-1] == 3 else "native"
        if "conv_stem.weight" in backbone:
            raise UserError(
                f"cannot infer the stem's stride from the weights of '{name}' in {self.path}: "
                "set teacher.encoder.stem to native or small"
            )
        return "native"

    def _normalization(
        self, name: str, settings: EncoderSettings, image_spec: ImageSpec
    ) -> tuple[Channels, Channels, str]:
        """Choose the mean and std to normalize with, and name their origin."""
        mean, std = self.statistics
        if mean is not None and std is not None:
            return mean, std, "teacher.mean and teacher.std"
        if name == "simclr":
            count = len(image_spec.mean)
            return (0.0,) * count, (1.0,) * count, "nothing (the convention of its project)"
        fixed = _fixed_size(settings)
        small = settings.stem == "small" or (fixed and max(height_width(fixed)) <= SMALL_IMAGE)
        if len(image_spec.mean) != RGB or (name != "lightly" and small):
            return image_spec.mean, image_spec.std, "the training images' own statistics"
        config = timm.get_pretrained_cfg(settings.name)
        if name == "timm" and config is not None:
            weights_name = f"{config.architecture}.{config.tag}" if config.tag else settings.name
            mean, std = cast("Channels", config.mean), cast("Channels", config.std)
            return mean, std, f"timm's statistics for {weights_name}"
        return IMAGENET_MEAN, IMAGENET_STD, "ImageNet's statistics"

    def _check_attention(self, parts: Parts, encoder: Encoder) -> None:
        heads = _attention_heads(encoder)
        expected = MOCO_V3_HEADS.get(encoder.embed_dim, heads)
        chosen = "num_heads" in self.settings.args
        if parts.format == "moco" and heads is not None and heads != expected and not chosen:
            raise UserError(
                f"MoCo v3's transformer of width {encoder.embed_dim} has {expected} attention "
                f"heads, but '{self.settings.name}' has {heads}: "
                f"set teacher.encoder.args.num_heads={expected}"
            )

    def _head(self, parts: Parts, encoder: Encoder) -> str:
        """Give the encoder its projector; return a phrase for the notice."""
        if not parts.head:
            return "no projector"
        # Of solo-learn's methods it is the one with GELUs, which weights do not show.
        gelu = parts.clusters or "vibcreg" in self.path.name
        try:
            head = build_head(parts.head, encoder.embed_dim, gelu, unit_length=parts.clusters)
        except UnknownHead as error:
            return f"ignored projector of unknown structure: {error}"
        encoder.projector = head
        return f"loaded projector {widths(head)}"

    def _warnings(
        self, parts: Parts, fitted: Fit, settings: EncoderSettings, encoder: Encoder
    ) -> list[str]:
        name = self.path.name
        warnings = [f"{name}: {line} (resized)" for line in fitted.resized]
        if odd := not_finite(parts.backbone | parts.head):
            warnings.append(f"{name}: {odd}: embeddings will not be finite")
        if fitted.missing:
            warnings.append(
                f"{name}: missing tensors keep their random initialization: "
                f"{', '.join(fitted.missing)}"
            )
        if fitted.extra:
            warnings.append(f"{name}: ignored unknown tensors: {', '.join(fitted.extra)}")
        if settings.stem_padding != self.settings.stem_padding:
            warnings.append(f"{name}: padding the small stem by {settings.stem_padding} pixels")
        heads = _attention_heads(encoder)
        unsure = parts.format == "solo-learn" and encoder.embed_dim in (192, 384)
        if heads not in (None, 12) and unsure and "num_heads" not in settings.args:
            warnings.append(
                f"{name}: solo-learn's MoCo v3 and MAE have 12 attention heads at this width, "
                f"but '{settings.name}' has {heads}; set teacher.encoder.args.num_heads if that "
                "is wrong"
            )
        return warnings


def _fixed_size(settings: EncoderSettings) -> Size | None:
    """Image size of an architecture with a fixed one; None for any other."""
    img_size = settings.args.get("img_size")
    if img_size is not None:
        return img_size if isinstance(img_size, int) else as_size(img_size[0], img_size[-1])
    config = timm.get_pretrained_cfg(settings.name)
    return config.input_size[-1] if config is not None and config.fixed_input_size else None


def _native_size(settings: EncoderSettings) -> Size:
    """Image size that timm's architecture was designed for."""
    config = timm.get_pretrained_cfg(settings.name)
    return _fixed_size(settings) or (config.input_size[-1] if config is not None else 224)


def _attention_heads(encoder: Encoder) -> int | None:
    blocks = getattr(encoder.net, "blocks", None)
    return getattr(getattr(blocks[0], "attn", None), "num_heads", None) if blocks else None


def _summary(parts: Parts, fitted: Fit, head: str) -> str:
    others = dict(parts.others)
    for key in fitted.left_out:
        first = key.split(".")[0]
        others[first] = others.get(first, 0) + 1
    listed = ", ".join(f"{group} ({count})" for group, count in others.items())
    return (
        f"{parts.format}, {parts.branch} network: loaded {fitted.loaded} backbone tensors, {head}"
        + (f", ignored: {listed}" if listed else "")
    )
