"""Groups of coupled channels and heads, and which of them can be removed."""

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch_pruning import ops as graph_ops

from ssdistill.compress.pruning.attention import find_attention
from ssdistill.compress.pruning.narrow import ChannelGroup, Member, masked, own_width, remove
from ssdistill.compress.pruning.soundness import unsound, verify
from ssdistill.compress.pruning.tracing import Dependencies, Part, trace
from ssdistill.models.model import Model

__all__ = ["ChannelGroup", "Prunable", "find_groups", "masked", "remove", "survey", "verify"]

Scope = Literal["inner", "all"]
Score = Callable[[Model, Sequence[ChannelGroup]], Sequence[Tensor | None]]
JOINTS = (graph_ops._ConcatOp, graph_ops._SplitOp, graph_ops._SliceOp, graph_ops._ExpandOp)
ATTENTION = ("ScaledDotProduct", "Bmm", "Softmax")
MIXING = ("LayerNorm", "GlobalResponseNorm", "GroupNorm", "RmsNorm", "RMSNorm")
"""Modules with statistics across channels: removing one channel changes all others."""


@dataclass
class Prunable:
    """Removable groups of a network, and reasons for the others.

    Attributes:
        groups: with scores of zero.
        whole: layers whose channels stay although the scope has them, and why.
    """

    groups: list[ChannelGroup] = field(default_factory=list)
    whole: dict[str, str] = field(default_factory=dict)


def find_groups(
    model: Model,
    scope: Scope = "inner",
    score: Score | None = None,
    units: Iterable[str] = ("channels", "heads"),
) -> list[ChannelGroup]:
    """The groups that can be removed, scored; the embedding's is never among them.

    Args:
        model: left as it is.
        scope: ``inner`` excludes what a residual addition or a concatenation touches and what
            is not within one block; ``all`` does not.
        score: importance of the units of every group, or None to leave a group whole; all are
            worth the same by default.
        units: ``channels``, ``heads`` or both.

    Raises:
        UserError: a network whose graph cannot be traced.
    """
    groups = survey(model, scope, units).groups
    if score is None:
        return groups
    scores = score(model, groups)
    pairs = zip(groups, scores, strict=True)
    return [replace(group, score_C=s.cpu()) for group, s in pairs if s is not None]


def survey(
    model: Model,
    scope: Scope = "inner",
    units: Iterable[str] = ("channels", "heads"),
    protect: Iterable[str] = (),
) -> Prunable:
    """Survey what can be removed from ``model``, and why the rest cannot.

    Args:
        protect: names of layers in ``net`` that keep their shape.

    Raises:
        UserError: a network whose graph cannot be traced.
    """
    prunable, protect = Prunable(), set(protect)
    if "channels" in units:
        dense = copy.deepcopy(model)
        for group, reason in _channel_groups(dense, trace(dense), scope, protect):
            _add(prunable, group, reason)
    if "heads" in units:
        for attention in find_attention(model.net):
            group = ChannelGroup(
                attention.root, torch.zeros(attention.heads), "heads", attention.width,
                attention.members,
            )  # fmt: skip
            blocked = protect & {member.layer for member in attention.members}
            _add(prunable, group, _protected(blocked) if blocked else attention.reason)
    for root in unsound(model, prunable.groups):
        prunable.whole[root] = "an operator between it and its consumers mixes or counts channels"
    prunable.groups = [group for group in prunable.groups if group.root not in prunable.whole]
    return prunable


def _add(prunable: Prunable, group: ChannelGroup, reason: str) -> None:
    if reason:
        prunable.whole[group.root] = reason
    elif len(group.score_C) > 1:
        prunable.groups.append(group)


def _protected(layers: Iterable[str]) -> str:
    return "protected" + "".join(f" by {layer}" for layer in sorted(layers)[:1])


def _channel_groups(
    model: Model, graph: Dependencies, scope: Scope, protect: set[str]
) -> Iterable[tuple[ChannelGroup, str]]:
    """Return the groups within the scope, and what speaks against the removal of each.

    Those that are part of attention or of the embedding are not among them.
    """
    for parts in _merge(graph):
        layers = {key[0] for part in parts for key in part.elements}
        operations = [node for part in parts for node in part.operations]
        names = " ".join(str(node.module) for node in operations)
        fixed = (graph_ops._OutputOp, graph_ops._UnbindOp)
        if any(isinstance(node.module, fixed) for node in operations):
            continue
        if any(name in names for name in ATTENTION):
            continue
        if scope == "inner" and not _inner(graph, parts, operations, layers):
            continue
        group, reason = _group(graph.layers, parts)
        blocked = protect & layers
        reason = _protected(blocked) if blocked else reason
        yield group, next((part.unknown for part in parts if part.unknown), reason)


def _inner(graph: Dependencies, parts: list[Part], operations: list[Any], layers: set[str]) -> bool:
    sides = {key[:2] for part in parts for key in part.elements}
    joined = any(isinstance(node.module, JOINTS) for node in operations)
    added = any("AddBackward" in str(n.module) and len(n.inputs) > 1 for n in operations)
    # One writer alone is no residual stream: the addition is within its activation or norm.
    writers = [
        name
        for name, side in sides
        if side == "out" and (name, "in") not in sides
        if isinstance(graph.layers.get(name), (nn.Conv2d, nn.Linear))
    ]
    if joined or (added and len(writers) > 1):
        return False
    parents = [name.split(".")[:-1] for name in layers]
    # The network itself is everybody's parent: only a deeper one is a block.
    return bool(parents) and all(parents) and len({path[0] for path in parents}) == 1


def _disjoint_sets(count: int) -> Any:
    # Imported here, since the import takes its time.
    from scipy.cluster.hierarchy import DisjointSet

    return DisjointSet(range(count))


def _merge(graph: Dependencies) -> list[list[Part]]:
    """Merge parts of the graph that share a grouped convolution."""
    sets, holder = _disjoint_sets(len(graph.parts)), {}
    for number, part in enumerate(graph.parts):
        for name, *_ in part.elements:
            module = graph.layers.get(name)
            if isinstance(module, nn.Conv2d) and module.groups > 1:
                sets.merge(number, holder.setdefault(name, number))
        for key in part.elements:
            sets.merge(number, holder.setdefault(key, number))
    merged: dict[int, list[Part]] = defaultdict(list)
    for number, part in enumerate(graph.parts):
        merged[sets[number]].append(part)
    return list(merged.values())


def _bundle(module: nn.Module | None, side: str, index: int) -> tuple | None:
    """What else must go with a channel of a layer: channels with equal bundles go together."""
    if isinstance(module, nn.Conv2d) and module.groups > 1:
        width = module.out_channels if side == "out" else module.in_channels
        return ("group", index // (width // module.groups))
    if isinstance(module, nn.GroupNorm):
        # As many from every group, so that the groups stay and stay equal.
        return ("place", index % (module.num_channels // module.num_groups))
    return None


def _group(known: dict[str, nn.Module], parts: list[Part]) -> tuple[ChannelGroup, str]:
    """Build one group from parts of the graph; return it and why it cannot be pruned, if so."""
    starts = [0]
    for part in parts:
        starts.append(starts[-1] + part.width)
    sets, holder = _disjoint_sets(starts[-1]), {}
    for start, part in zip(starts, parts, strict=False):
        for unit in range(part.width):
            sets.merge(start + unit, start + part.tied.get(unit, unit))
        for key, unit in part.elements.items():
            sets.merge(start + unit, holder.setdefault(key, start + unit))
            bundle = _bundle(known.get(key[0]), key[1], key[3])
            if bundle is not None:
                sets.merge(start + unit, holder.setdefault((key[0], *bundle), start + unit))
    roots = dict.fromkeys(sets[unit] for unit in range(starts[-1]))
    number = {root: unit for unit, root in enumerate(roots)}
    members = defaultdict(lambda: ([], []))
    for key, unit in holder.items():
        if len(key) == 4:
            channels, units = members[key[:3]]
            channels.append(key[3])
            units.append(number[sets[unit]])
    root = parts[0].root
    unique_members = tuple(
        Member(name, side, torch.tensor(channels), torch.tensor(units), axis)
        for (name, side, axis), (channels, units) in members.items()
    )
    exact = not any(_mixes(known, member) for member in unique_members)
    width_C = torch.tensor(members[root, "out", 0][1]).bincount(minlength=len(roots))
    group = ChannelGroup(
        root, torch.zeros(len(roots)), "channels", int(width_C[0]), unique_members, exact
    )  # fmt: skip
    return group, _uneven(known, group, width_C)


def _mixes(known: dict[str, nn.Module], member: Member) -> bool:
    """Whether the layer, or the module a bare parameter belongs to, compares channels."""
    module = known.get(member.layer) or known.get(member.layer.rpartition(".")[0])
    return any(name in type(module).__name__ for name in MIXING)


def _uneven(known: dict[str, nn.Module], group: ChannelGroup, width_C: Tensor) -> str:
    if len(width_C.unique()) > 1:
        return "its channels are coupled in groups of unequal size"
    for member in group.members:
        module = known.get(member.layer)
        if isinstance(module, nn.GroupNorm) and module.num_groups == own_width(module):
            return f"each channel is a group of its own in {member.layer}"
        if (
            isinstance(module, nn.Conv2d)
            and module.groups > 1
            and not _whole_groups(module, member)
        ):
            return f"the groups of {member.layer} would lose unequal parts"
    return ""


def _whole_groups(conv: nn.Conv2d, member: Member) -> bool:
    """Whether whole groups of a grouped convolution go with every unit."""
    width = conv.out_channels if member.side == "out" else conv.in_channels
    counts = member.unit_N.bincount()
    return math.gcd(*counts.tolist(), width // conv.groups) == width // conv.groups
