"""Remove channels and heads from layers, or mask them to the same effect."""

import copy
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, cast

import torch
from torch import Tensor, nn

from ssdistill.models.model import Model

NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)


@dataclass(frozen=True)
class Member:
    """Channels of one side of a layer, and the units they belong to.

    Attributes:
        layer: name in ``net`` of a layer, or of a bare parameter such as a layer scale.
        side: ``out`` for what it writes (and for what has only one side), ``in`` for what it
            reads.
        channel_N, unit_N: the n-th channel goes with this unit.
        axis: of a bare parameter, the axis of its channels.
    """

    layer: str
    side: Literal["out", "in"]
    channel_N: Tensor
    unit_N: Tensor
    axis: int = 0


@dataclass(frozen=True)
class ChannelGroup:
    """Units that are removed one by one, each with everything that belongs to it.

    A unit is a channel in the simplest case; a head, a group of a grouped convolution, or one
    channel of every group of a group norm in others.

    Attributes:
        root: name in ``net`` of a layer that writes the channels.
        score_C: importance of each unit, higher is kept longer.
        kind: what a unit is.
        width: how many output channels of ``root`` a unit has; of a head, its width.
        members: every layer that takes part in the units.
        exact: False where a norm over the channels has other statistics without a unit, so that
            removing is not the same as zeroing.
    """

    root: str
    score_C: Tensor
    kind: Literal["channels", "heads"] = "channels"
    width: int = 1
    members: tuple[Member, ...] = field(default=(), repr=False)
    exact: bool = True


def remove(model: Model, groups: Sequence[ChannelGroup], kept_units: Sequence[Tensor]) -> Model:
    """A copy of ``model`` with only the ``kept_units`` units of every group.

    ``channels`` of the copy names, for every convolution and linear layer that has lost outputs,
    which of the uncompressed network it still has.

    Args:
        model: left as it is.
        groups: from :func:`ssdistill.compress.pruning.graph.find_groups`.
        kept_units: ascending unit indices, by group.
    """
    pruned = copy.deepcopy(model)
    # What notes the maps would note them in the model it was copied from.
    pruned.set_taps(())
    for parameter in pruned.parameters():
        parameter.grad = None
    removed = _removed_channels(groups, kept_units)
    for (name, side, axis), channels in removed.items():
        module, key = _resolve(pruned.net, name)
        kept = torch.tensor(sorted(set(range(_width(module, key, side, axis))) - channels))
        if key is not None:
            _select(module, key, axis, kept)
            continue
        if side == "out" and isinstance(module, (nn.Conv2d, nn.Linear)):
            before = pruned.channels.get(name) or range(_width(module, None, "out", 0))
            pruned.channels[name] = [before[i] for i in kept.tolist()]
        _narrow(module, side, kept)
    for group, kept in zip(groups, kept_units, strict=True):
        if group.kind == "heads":
            _fewer_heads(pruned.net.get_submodule(group.root.rpartition(".")[0]), len(kept))
    pruned.set_taps(getattr(model, "taps", ()))
    return pruned


@torch.no_grad()
def masked(model: Model, groups: Sequence[ChannelGroup], kept_units: Sequence[Tensor]) -> Model:
    """A copy of ``model``, as wide as it was, in which nothing reads the units not kept.

    Wherever every group is exact it gives the same embeddings as :func:`remove`.
    """
    silent = copy.deepcopy(model)
    silent.set_taps(())
    for (name, side, _), channels in _removed_channels(groups, kept_units).items():
        module = silent.net.get_submodule(name) if side == "in" else None
        if module is not None and getattr(module, "groups", 1) == 1:
            cast("Tensor", module.weight)[:, sorted(channels)] = 0
    return silent


def _removed_channels(
    groups: Sequence[ChannelGroup], kept_units: Sequence[Tensor]
) -> dict[tuple[str, str, int], set[int]]:
    """The channels to remove, by layer, side and axis."""
    removed: dict[tuple[str, str, int], set[int]] = defaultdict(set)
    for group, kept in zip(groups, kept_units, strict=True):
        away_C = torch.ones(len(group.score_C), dtype=torch.bool)
        away_C[kept] = False
        if away_C.any():
            for member in group.members:
                channels = member.channel_N[away_C[member.unit_N]].tolist()
                removed[member.layer, member.side, member.axis].update(channels)
    return removed


def _resolve(net: nn.Module, name: str) -> tuple[nn.Module, str | None]:
    """The layer of that name; for a bare parameter its module and its key there."""
    path, _, last = name.rpartition(".")
    parent = net.get_submodule(path)
    if last in parent._parameters:
        return parent, last
    return net.get_submodule(name), None


def _width(module: nn.Module, key: str | None, side: str, axis: int) -> int:
    if key is not None:
        return cast("Tensor", module._parameters[key]).shape[axis]
    if isinstance(module, nn.Linear):
        return module.out_features if side == "out" else module.in_features
    if isinstance(module, nn.Conv2d):
        return module.out_channels if side == "out" else module.in_channels
    return own_width(module)


def own_width(module: nn.Module) -> int:
    """Channels of a norm or activation."""
    if isinstance(module, nn.LayerNorm):
        return module.normalized_shape[-1]
    for key in ("num_features", "num_channels", "num_parameters"):
        if hasattr(module, key):
            return getattr(module, key)
    return len(cast("Tensor", module.weight))


def _narrow(module: nn.Module, side: str, kept: Tensor) -> None:
    if isinstance(module, nn.Linear):
        _select(module, "weight", 0 if side == "out" else 1, kept)
        module.out_features, module.in_features = module.weight.shape[0], module.weight.shape[1]
    elif isinstance(module, nn.Conv2d):
        _narrow_convolution(module, side, kept)
    else:
        for key in ("weight", "bias", "running_mean", "running_var"):
            if isinstance(getattr(module, key, None), Tensor):
                _select(module, key, 0, kept)
        for key in ("num_features", "num_channels", "num_parameters"):
            if hasattr(module, key):
                setattr(module, key, len(kept))
        if isinstance(module, nn.LayerNorm):
            module.normalized_shape = (len(kept),)
        return
    if side == "out" and module.bias is not None:
        _select(module, "bias", 0, kept)


def _narrow_convolution(conv: nn.Conv2d, side: str, kept: Tensor) -> None:
    if side == "out":
        _select(conv, "weight", 0, kept)
        conv.out_channels = len(kept)
    elif conv.groups == 1:
        _select(conv, "weight", 1, kept)
        conv.in_channels = len(kept)
    else:
        # Whole groups go, with all they read and write: the weight loses rows only.
        conv.groups = len(kept) // (conv.in_channels // conv.groups)
        conv.in_channels = len(kept)


def _select(module: nn.Module, key: str, axis: int, kept: Tensor) -> None:
    tensor = getattr(module, key)
    chosen = tensor.detach().index_select(axis, kept.to(tensor.device))
    if isinstance(tensor, nn.Parameter):
        chosen = nn.Parameter(chosen, requires_grad=tensor.requires_grad)
    setattr(module, key, chosen)


def _fewer_heads(attention: nn.Module, heads: int) -> None:
    """What timm and transformers call the number of heads and the width of all of them."""
    width = getattr(attention, "head_dim", None) or cast("int", attention.attention_head_size)
    for key in ("num_heads", "num_attention_heads"):
        if hasattr(attention, key):
            setattr(attention, key, heads)
    for key in ("attn_dim", "all_head_size"):
        if hasattr(attention, key):
            setattr(attention, key, heads * width)


def tensors(model: Model) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and buffer of the network that holds numbers."""
    yield from model.net.named_parameters()
    yield from model.net.named_buffers()
