"""Weights that an encoder starts from, of a model, a checkpoint or timm, as far as they fit."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import timm
import torch
from torch import Tensor

from ssdistill.artifacts.artifact import load_encoder
from ssdistill.artifacts.description import read_description
from ssdistill.artifacts.files import find_artifact
from ssdistill.errors import UserError, shortened
from ssdistill.files import user_path
from ssdistill.models.backbones import Encoder
from ssdistill.models.downloads import downloading
from ssdistill.models.spec import Channels
from ssdistill.models.timm_net import check_timm_name
from ssdistill.teachers.formats.fitting import COUNT, through_timm
from ssdistill.teachers.formats.own_names import of_own_network, unprefixed
from ssdistill.teachers.formats.parts import take_apart
from ssdistill.teachers.formats.reading import read, sha256_of
from ssdistill.teachers.formats.states import flat_state, named_tensors
from ssdistill.teachers.formats.tensors import not_finite

TIMM = "timm:"
KEY = "encoder.weights"
SHOWN = 3
"""Names of tensors that a message lists."""


@dataclass(frozen=True)
class Start:
    """What an encoder has taken over.

    Attributes:
        loaded, total: tensors of the network that were loaded, and all of them.
        missing: the network's tensors that were not in the file; they keep their initialization.
        other_shapes: those in the file with another shape; likewise.
        ignored: of the file, unknown to the network.
        notes: what else there is to say.
    """

    loaded: int
    total: int
    missing: list[str] = field(default_factory=list)
    other_shapes: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def text(self, weights: str) -> str:
        """Say all of it in one line."""
        parts = [f"{self.loaded} of {self.total} tensors start from {shortened(weights, 100)}"]
        for what, names in (
            ("missing there", self.missing),
            ("of another shape", self.other_shapes),
            ("ignored", self.ignored),
        ):
            if names:
                parts.append(f"{len(names)} {what} ({few(names)})")
        return "; ".join([*parts, *self.notes])


def weights_identity(weights: str) -> dict[str, Any]:
    """What tells these weights from others, for the hash of a stage.

    Raises:
        UserError: there are none.
    """
    if weights.startswith(TIMM):
        config = _timm_config(weights.removeprefix(TIMM))
        return {"hub": config.hf_hub_id, "url": config.url, "tag": config.tag}
    if user_path(weights).is_file() and not _is_artifact(weights):
        return {"sha256": sha256_of(user_path(weights))}
    return {"sha256": read_description(find_artifact(weights)).sha256}


def starting_statistics(
    weights: str | None, mean: Channels, std: Channels
) -> tuple[Channels, Channels]:
    """Mean and std that weights were trained with; those of the data where they do not say.

    Args:
        weights: None for none.
        mean, std: of the data.

    Raises:
        UserError: there are no such weights.
    """
    if weights is None:
        return mean, std
    try:
        trained = _statistics(weights)
    except UserError as error:
        raise UserError(f"{KEY}: {error}") from None
    return trained if trained and len(trained[0]) == len(mean) else (mean, std)


def _statistics(weights: str) -> tuple[Channels, Channels] | None:
    if weights.startswith(TIMM):
        config = _timm_config(weights.removeprefix(TIMM))
        return cast("Channels", tuple(config.mean)), cast("Channels", tuple(config.std))
    if user_path(weights).is_file() and not _is_artifact(weights):
        return None
    stored = read_description(find_artifact(weights)).spec
    return (stored.mean, stored.std) if stored else None


def start_from(encoder: Encoder, weights: str) -> Start:
    """Load into a network what fits of a model, a checkpoint or timm's weights.

    Args:
        encoder: changed in place; what does not fit keeps its initialization.
        weights: the folder of a finished stage or saved model, a checkpoint in one of the formats
            of ``teacher.kind=checkpoint``, any file of a state dict, or ``timm:NAME``.

    Raises:
        UserError: nothing of it fits, or it cannot be read.
    """
    try:
        return _fit(encoder, _tensors(encoder, weights), weights)
    except UserError as error:
        raise UserError(f"{KEY}: {error}") from None


def _tensors(encoder: Encoder, weights: str) -> Mapping[str, Tensor]:
    if weights.startswith(TIMM):
        name = weights.removeprefix(TIMM)
        _timm_config(name)
        with downloading(f"weights of '{name}'", "name a file instead", hub=True):
            return timm.create_model(name, pretrained=True, num_classes=0).state_dict()
    path = user_path(weights)
    if not path.is_file() or _is_artifact(weights):
        return load_encoder(find_artifact(weights)).net.state_dict()
    if encoder.spec.library != "timm":
        return of_own_network(named_tensors(read(path), path), encoder.net.state_dict())
    state = flat_state(read(path), path)
    try:
        return take_apart(state, "auto", "auto", path).backbone
    except UserError:  # a state dict of no project that is known
        return unprefixed(state, encoder.net.state_dict())


def _fit(encoder: Encoder, state: Mapping[str, Tensor], weights: str) -> Start:
    own = encoder.net.state_dict()
    if encoder.spec.library == "timm":
        state = through_timm(encoder.net, encoder.spec.name, dict(state))
    fitting = {
        name: tensor
        for name, tensor in state.items()
        if name in own and tensor.shape == own[name].shape
    }
    adapted = _adapted_channels(encoder, state, own)
    others = [name for name in state if name in own and name not in {*fitting, *adapted}]
    fitting |= adapted
    if not any(not name.endswith(COUNT) for name in fitting):
        why = f"has none of the tensors of '{encoder.spec.name}' (its first: {few(list(state))})"
        if others:
            shapes = f"{tuple(state[others[0]].shape)}, not {tuple(own[others[0]].shape)}"
            why = f"has tensors of other shapes than '{encoder.spec.name}' ({others[0]}: {shapes})"
        raise UserError(f"{shortened(weights, 100)} {why}; check encoder.name and encoder.args")
    with torch.no_grad():
        encoder.net.load_state_dict(own | {k: v.to(own[k].dtype) for k, v in fitting.items()})
    notes = [f"the first layer is adapted to {encoder.spec.in_chans} channels"] if adapted else []
    if odd := not_finite(encoder.net.state_dict()):
        notes.append(f"{odd}: embeddings will not be finite")
    return Start(
        loaded=len(fitting),
        total=len(own),
        missing=[n for n in own if n not in state and not n.endswith(COUNT)],
        other_shapes=others,
        ignored=[name for name in state if name not in own],
        notes=notes,
    )


def _adapted_channels(
    encoder: Encoder, state: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The first convolution for RGB, where images have another number of channels, as by timm."""
    for name, tensor in state.items():
        if name not in own or own[name].ndim != 4 or tensor.ndim != 4:
            continue
        given, wanted = tensor.shape[1], own[name].shape[1]
        same = (tensor.shape[0], *tensor.shape[2:]) == (own[name].shape[0], *own[name].shape[2:])
        if given == 3 and wanted == encoder.spec.in_chans != 3 and same:
            return {name: timm.models.adapt_input_conv(wanted, tensor.float())}
    return {}


def _timm_config(name: str) -> Any:
    check_timm_name(name)
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise UserError(f"timm has no pretrained weights for '{name}'; name a file")
    return config


def _is_artifact(weights: str) -> bool:
    try:
        find_artifact(weights)
    except UserError:
        return False
    return True


def few(names: list[str]) -> str:
    """The first of some names."""
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
