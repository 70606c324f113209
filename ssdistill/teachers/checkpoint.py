"""A teacher that another project has trained."""

from pathlib import Path
from typing import Any, Literal

import timm
from torch import Tensor

from ssdistill.errors import UserError
from ssdistill.models.backbones import Encoder, build_encoder, check_timm_name
from ssdistill.models.spec import IMAGENET_MEAN, IMAGENET_STD, EncoderSettings
from ssdistill.models.stems import SMALL_IMAGE, takes_small_stem
from ssdistill.settings import PositiveInt
from ssdistill.teachers import Pictures, Teacher
from ssdistill.teachers.formats.fitting import Fit, fit
from ssdistill.teachers.formats.heads import UnknownHead, build_head, widths
from ssdistill.teachers.formats.layouts import FALLBACK, FORMATS, BranchName, first_names
from ssdistill.teachers.formats.parts import Parts, take_apart
from ssdistill.teachers.formats.reading import read, sha256_of
from ssdistill.teachers.formats.states import flat_state
from ssdistill.teachers.formats.tensors import not_finite
from ssdistill.teachers.sizes import fit_size, size_notices

Channels = tuple[float, float, float]
UNCHANGED: tuple[Channels, Channels] = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
"""Statistics of what takes images in [0, 1] as they are."""
SOLO_LEARN_PADDING = 2
"""Of the first convolution that it gives ResNets for small images."""
MOCO_V3_HEADS = {384: 12}
"""Attention heads of MoCo v3's small transformer by width; weights do not tell their number."""


class Checkpoint(Teacher):
    """Weights from another project's checkpoint file, of which nothing is executed.

    The file's projector is kept where its structure is one that the project is known to use.

    Args:
        path: the file: safetensors, or what ``torch.save`` or pickle wrote.
        format: whose layout of names it has; ``auto`` tells it from them.
        encoder: the network that its backbone is. ``stem: auto`` is told from the file's first
            convolution; solo-learn's small stem is padded by 2 where nothing else is said.
        mean: of the images the teacher was trained on, per channel in [0, 1]; null is what its
            project does: simclr (sthalles, Spijkervet, SimCLR v2) takes images unchanged,
            lightly normalises by ImageNet; a timm file by what timm notes of the model; else
            networks for small images (small stem, or a fixed side up to 64 pixels) by the
            training images' own statistics, all others by ImageNet's.
        std: likewise.
        input_size: side to which it resizes images inside; null is the model's own where that
            is fixed (transformers) or where it cannot take them as they come.
        branch: which network, where the file has both: ``online`` (or ``student``) or
            ``momentum`` (or ``teacher``); ``auto`` is the one the method's authors evaluate.
        allow_missing: take a file that lacks tensors of the network; they stay random.
        allow_extra: take a file whose backbone has tensors that the network has not.
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
        input_size: PositiveInt | None = None,
        branch: BranchName = "auto",
        allow_missing: bool = False,
        allow_extra: bool = False,
    ):  # fmt: skip
        self.path, self.format, self.settings = Path(path).expanduser(), format, encoder
        self.statistics = (mean, std)
        self.input_size = input_size or encoder.input_size
        self.branch: BranchName = branch
        self.allow_missing, self.allow_extra = allow_missing, allow_extra

    def identity(self) -> dict[str, Any]:
        return {"sha256": sha256_of(self.path)}

    def load(self, pictures: Pictures) -> tuple[Encoder, list[str]]:
        self._check_settings()
        state = flat_state(read(self.path), self.path)
        parts = take_apart(state, self.format, self.branch, self.path)
        settings = self._network(parts)
        mean, std, whose = self._normalisation(parts.format, settings, pictures)
        encoder = build_encoder(settings, pictures.image_size, mean, std)
        self._check_attention(parts, encoder)
        try:
            found = fit(
                encoder.net, settings.name, parts.backbone, self.allow_missing, self.allow_extra
            )
        except UserError as error:
            raise UserError(f"{self.path} {error}{self._how_read(parts, state)}") from None
        fit_size(encoder, _native_side(settings))
        notices = [
            _summary(parts, found, self._head(parts, encoder)),
            f"{self.path.name}: images are normalised by {whose}",
            *self._warnings(parts, found, settings, encoder),
            *size_notices(encoder),
        ]
        return encoder.eval(), notices

    def _how_read(self, parts: Parts, state: dict[str, Tensor]) -> str:
        if self.format != "auto":
            return ""
        how = f"read as {parts.format}"
        if parts.format == FALLBACK:
            how = f"it shows no mark of {', '.join(name for name in FORMATS if name != FALLBACK)}"
        return f" ({how}; its first names: {first_names(state)})"

    def _check_settings(self) -> None:
        if self.settings.pretrained:
            raise UserError("teacher.encoder.pretrained has no place beside a checkpoint")
        if (self.statistics[0] is None) != (self.statistics[1] is None):
            raise UserError("teacher.mean and teacher.std go together: set both or none")
        check_timm_name(self.settings.name)

    def _network(self, parts: Parts) -> EncoderSettings:
        """The settings with everything that the file, or its project, decides."""
        settings = self.settings
        update: dict[str, Any] = {"input_size": self.input_size or _fixed_side(settings)}
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
                f"the weights of '{name}' in {self.path} do not tell the stride of its stem: "
                "set teacher.encoder.stem to native or small"
            )
        return "native"

    def _normalisation(
        self, name: str, settings: EncoderSettings, pictures: Pictures
    ) -> tuple[Channels, Channels, str]:
        """(mean, std, whose they are)."""
        mean, std = self.statistics
        if mean is not None and std is not None:
            return mean, std, "teacher.mean and teacher.std"
        if name == "simclr":
            return *UNCHANGED, "nothing, as its project does"
        fixed = _fixed_side(settings)
        if name != "lightly" and (settings.stem == "small" or (fixed and fixed <= SMALL_IMAGE)):
            return pictures.mean, pictures.std, "the training images' own statistics"
        config = timm.get_pretrained_cfg(settings.name)
        if name == "timm" and config is not None:
            given = f"{config.architecture}.{config.tag}" if config.tag else settings.name
            return config.mean, config.std, f"the statistics that timm notes of {given}"
        return IMAGENET_MEAN, IMAGENET_STD, "ImageNet's statistics"

    def _check_attention(self, parts: Parts, encoder: Encoder) -> None:
        heads = _attention_heads(encoder)
        expected = MOCO_V3_HEADS.get(encoder.embed_dim, heads)
        chosen = "num_heads" in self.settings.args
        if parts.format == "moco" and heads is not None and heads != expected and not chosen:
            raise UserError(
                f"MoCo v3's transformer of width {encoder.embed_dim} has {expected} attention "
                f"heads, '{self.settings.name}' has {heads}: "
                f"set teacher.encoder.args.num_heads={expected}"
            )

    def _head(self, parts: Parts, encoder: Encoder) -> str:
        """Gives the encoder its projector, and says what became of it."""
        if not parts.head:
            return "no projector"
        # Of solo-learn's methods it is the one with GELUs, which weights do not show.
        gelu = parts.clusters or "vibcreg" in self.path.name
        try:
            head = build_head(parts.head, encoder.embed_dim, gelu, unit_length=parts.clusters)
        except UnknownHead as error:
            return f"projector of unknown structure left out: {error}"
        encoder.projector = head
        return f"projector {widths(head)} kept"

    def _warnings(
        self, parts: Parts, found: Fit, settings: EncoderSettings, encoder: Encoder
    ) -> list[str]:
        name = self.path.name
        warnings = [f"{name}: {line} (resized)" for line in found.resized]
        if odd := not_finite(parts.backbone | parts.head):
            warnings.append(f"{name}: {odd}: embeddings will not be finite either")
        if found.missing:
            warnings.append(f"{name} lacks, left as initialised: {', '.join(found.missing)}")
        if found.extra:
            warnings.append(f"{name} has, left out: {', '.join(found.extra)}")
        if settings.stem_padding != self.settings.stem_padding:
            warnings.append(f"{name}: the small stem is padded by {settings.stem_padding}")
        heads = _attention_heads(encoder)
        unsure = parts.format == "solo-learn" and encoder.embed_dim in (192, 384)
        if heads not in (None, 12) and unsure and "num_heads" not in settings.args:
            warnings.append(
                f"{name}: solo-learn's MoCo v3 and MAE have 12 attention heads at this width, "
                f"'{settings.name}' has {heads}; teacher.encoder.args.num_heads sets them"
            )
        return warnings


def _fixed_side(settings: EncoderSettings) -> int | None:
    """The side of the images that an architecture is tied to."""
    given = settings.args.get("img_size")
    if given is not None:
        return int(given if isinstance(given, int) else given[0])
    config = timm.get_pretrained_cfg(settings.name)
    return config.input_size[-1] if config is not None and config.fixed_input_size else None


def _native_side(settings: EncoderSettings) -> int:
    """The side of the images that timm made an architecture for."""
    config = timm.get_pretrained_cfg(settings.name)
    return _fixed_side(settings) or (config.input_size[-1] if config is not None else 224)


def _attention_heads(encoder: Encoder) -> int | None:
    blocks = getattr(encoder.net, "blocks", None)
    return getattr(getattr(blocks[0], "attn", None), "num_heads", None) if blocks else None


def _summary(parts: Parts, found: Fit, head: str) -> str:
    others = dict(parts.others)
    for key in found.left_out:
        first = key.split(".")[0]
        others[first] = others.get(first, 0) + 1
    listed = ", ".join(f"{group} ({count})" for group, count in others.items())
    return (
        f"{parts.format}, {parts.branch} network: {found.loaded} tensors of the backbone, {head}"
        + (f", left out: {listed}" if listed else "")
    )
