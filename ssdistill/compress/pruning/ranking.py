"""Select the channels and heads that stay, by importance."""

from collections.abc import Sequence
from math import gcd
from typing import cast

import torch
from torch import Tensor

from ssdistill.compress.pruning.narrow import ChannelGroup
from ssdistill.models.model import Model


def dense_units(groups: Sequence[ChannelGroup], model: Model, original: Model) -> list[float]:
    """How many units every group had in the uncompressed model."""
    pruned_modules, dense_modules = (dict(m.net.named_modules()) for m in (model, original))
    units = []
    for group in groups:
        pruned = cast("Tensor", pruned_modules[group.root].weight)
        # What came into being since, such as a factor of a layer, has lost nothing.
        dense: Tensor = getattr(dense_modules.get(group.root), "weight", pruned)
        units.append(len(group.score_C) * dense.shape[0] / pruned.shape[0])
    return units


def best(
    groups: Sequence[ChannelGroup],
    units: Sequence[float] | None,
    round_to: int,
    together: bool,
    relative: bool,
    ratio: float,
) -> list[Tensor]:
    """Indices of the units that stay, ascending, by group: at least one of each.

    Args:
        units: how many of every group the ratio is a fraction of; those it has by default.
        round_to: widths in channels are multiples of this where they change; heads keep theirs.
        together: rank all groups in one list.
        relative: divide scores by their group's mean before that.
        ratio: fraction of the units to remove.
    """
    keep_counts = [count * (1 - ratio) for count in units or [len(g.score_C) for g in groups]]
    if together:
        scores = [_relative(g.score_C) if relative else g.score_C for g in groups]
        owner = torch.cat([torch.full((len(s),), i) for i, s in enumerate(scores)])
        order = torch.cat(scores).argsort(descending=True, stable=True)
        number = max(int(sum(keep_counts) + 1e-6), 1)
        keep_counts = owner[order[:number]].bincount(minlength=len(scores)).tolist()
    kept_units = []
    for group, count in zip(groups, keep_counts, strict=True):
        step = 1 if group.kind == "heads" else round_to // gcd(round_to, group.width)
        num_units = len(group.score_C)
        # A width that was no multiple before need not become one while nothing is removed.
        count = (
            num_units if count >= num_units else min(max(round(count / step), 1) * step, num_units)
        )
        kept_units.append(group.score_C.topk(count).indices.sort().values)
    return kept_units


def _relative(score_C: Tensor) -> Tensor:
    return score_C / score_C.mean().clamp(min=torch.finfo(score_C.dtype).tiny)
