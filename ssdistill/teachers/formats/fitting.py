"""Load a checkpoint's backbone into timm's network and account for every tensor."""

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import timm
from torch import Tensor, nn

from ssdistill.errors import UserError

CLASSIFIERS = {"classifier", "fc", "head", "heads", "linear", "last_linear", "head_dist"}
"""Classifier layers, ignored if the network without its classifier has no such layer."""
PRETEXT = ("decoder", "mask_token")
"""Name prefixes of the training-only parts of masked autoencoders."""
COUNT = "num_batches_tracked"


@dataclass(frozen=True)
class Fit:
    """Outcome of loading a backbone.

    Attributes:
        loaded: number of tensors.
        left_out: tensors that belong to no backbone: classifiers, decoders.
        missing, extra: of the network and of the file; empty unless they were allowed.
        resized: position embeddings that were interpolated, with both shapes.
    """

    loaded: int
    left_out: list[str]
    missing: list[str]
    extra: list[str]
    resized: list[str]


def fit(
    net: nn.Module, name: str, state: dict[str, Tensor], allow_missing: bool, allow_extra: bool
) -> Fit:
    """Load ``state`` into the network that timm calls ``name``.

    Raises:
        UserError: no tensor of it, not all of them, or more than it has, unless that is
            allowed; or one of another shape. The text reads as a predicate of the file.
    """
    own = net.state_dict()
    renamed = through_timm(net, name, state)
    loadable = {k: v for k, v in renamed.items() if k in own}
    if not any(k for k in loadable if not k.endswith(COUNT)):
        raise UserError(f"has none of the tensors of '{name}': check teacher.encoder.name")
    for key, tensor in loadable.items():
        if tensor.shape != own[key].shape:
            raise UserError(_shape_message(name, key, tensor, own[key]))
        counts = key.endswith(COUNT)
        if not counts and tensor.is_floating_point() != own[key].is_floating_point():
            file_dtype, net_dtype = (
                str(t.dtype).removeprefix("torch.") for t in (tensor, own[key])
            )
            raise UserError(
                f"has a '{key}' of type {file_dtype}, but '{name}' expects {net_dtype}: "
                "check teacher.encoder.name"
            )
    left_out = [k for k in renamed if k not in own and _is_no_backbone(k)]
    extra = [k for k in renamed if k not in own and not _is_no_backbone(k)]
    missing = [k for k in own if k not in loadable and not k.endswith(COUNT)]
    if missing and not allow_missing:
        raise UserError(
            f"lacks {len(missing)} of the {len(own)} tensors of '{name}' ({_few(missing)}): check "
            "teacher.encoder.name, or set teacher.allow_missing=true to initialize them randomly"
        )
    if extra and not allow_extra:
        raise UserError(
            f"has {len(extra)} tensors unknown to '{name}' ({_few(extra)}): "
            "check teacher.encoder.name, or set teacher.allow_extra=true to ignore them"
        )
    try:
        net.load_state_dict(own | loadable)
    except RuntimeError as error:
        raise UserError(
            f"cannot be loaded into '{name}': {' '.join(str(error).split())}"
        ) from error
    resized = [
        f"{k} from {tuple(state[k].shape)} to {tuple(v.shape)}"
        for k, v in loadable.items()
        if k in state and state[k].shape != v.shape
    ]
    return Fit(len(loadable), left_out, missing, extra, resized)


def through_timm(net: nn.Module, name: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert ``state`` with timm's own filter for this family of networks."""
    own = net.state_dict()
    if all(k in state and state[k].shape == v.shape for k, v in own.items()):
        return state
    if not timm.is_model(name):
        return state
    family = sys.modules[timm.models.model_entrypoint(name).__module__]
    convert = getattr(family, "checkpoint_filter_fn", None)
    if convert is None:
        return state
    options = {"adapt_layer_scale": True} if "adapt_layer_scale" in _arguments(convert) else {}
    # The filter may raise anything for tensors that are not a checkpoint of its family.
    try:
        converted = convert(dict(state), net, **options)
    except Exception:
        return state
    # The filter also resamples kernels, which would change the network: undo that.
    return {k: state[k] if _is_filter(k, v, state) else v for k, v in converted.items()}


def _arguments(function: Callable[..., Any]) -> set[str]:
    return set(inspect.signature(function).parameters)


def _is_filter(key: str, tensor: Tensor, state: dict[str, Tensor]) -> bool:
    before = state.get(key)
    return before is not None and before.ndim == 4 and before.shape != tensor.shape


def _is_no_backbone(key: str) -> bool:
    return key.split(".")[0] in CLASSIFIERS or key.startswith(PRETEXT)


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")


def _shape_message(name: str, key: str, file_tensor: Tensor, net_tensor: Tensor) -> str:
    text = (
        f"has a '{key}' of shape {tuple(file_tensor.shape)}, but '{name}' expects "
        f"{tuple(net_tensor.shape)}"
    )
    if file_tensor.ndim == net_tensor.ndim == 4 and key in ("conv1.weight", "conv_stem.weight"):
        file_side, net_side = file_tensor.shape[-1], net_tensor.shape[-1]
        if file_side == 3 < net_side:
            return f"{text}: set teacher.encoder.stem=small"
        if net_side == 3 < file_side:
            return f"{text}: set teacher.encoder.stem=native"
    return f"{text}: check teacher.encoder.name"
