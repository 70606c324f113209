"""Remove whole channels, so that the tensors really get smaller."""

from collections.abc import Callable
from typing import Literal

import torch
import torch_pruning
from torch import Tensor, nn

from ssdistill.compress import Context, Step
from ssdistill.compress.graph import ChannelGroup, find_groups, remove, verify
from ssdistill.errors import UserError
from ssdistill.measure.macs import count_macs
from ssdistill.measure.parameters import count_parameters
from ssdistill.models.backbones import Encoder
from ssdistill.settings import OpenFraction, PositiveInt

BISECTIONS = 8
"""Halvings of the channel ratio; 1/256 is finer than any rounding to multiples of 8."""


class Prune(Step):
    """Structured pruning along the dependency graph of Torch-Pruning.

    Exactly one of ``ratio``, ``macs`` and ``parameters`` says how much; the last two find the
    largest network within the budget by bisection of the ratio. The feature width never
    changes and attention is left whole. Weights are not retrained here: let a refit,
    recalibration or recovery step follow.

    Args:
        criterion: which channels go first: smallest ``l2`` or ``l1`` norm over all tensors the
            channel touches, smallest batch-norm scale (``bn_scale``, Liu et al., ICCV 2017,
            arXiv:1708.06519), or ``random``.
        scope: ``inner`` removes only channels within a block, which no residual addition and no
            concatenation touches; ``all`` also the residual stream and the stem.
        ratio: share of the prunable channels to remove.
        macs: share of the multiply-accumulates to keep at most.
        parameters: share of the parameters to keep at most.
        round_to: kept widths are multiples of this (and at least this).
        global_ranking: rank the channels of all layers together (scores divided by their
            layer's mean) instead of removing the same share everywhere.
        seed: of ``criterion: random``.
    """

    kind = "prune"
    paper = "Fang et al., CVPR 2023, arXiv:2301.12900"
    makes = "pruned"

    def __init__(
        self,
        *,
        criterion: Literal["l2", "l1", "bn_scale", "random"] = "l2",
        scope: Literal["inner", "all"] = "inner",
        ratio: OpenFraction | None = None,
        macs: OpenFraction | None = None,
        parameters: OpenFraction | None = None,
        round_to: PositiveInt = 8,
        global_ranking: bool = False,
        seed: int = 0,
    ):
        if sum(x is not None for x in (ratio, macs, parameters)) != 1:
            raise UserError("prune: give exactly one of ratio, macs and parameters")
        self.criterion, self.scope, self.ratio = criterion, scope, ratio
        self.macs, self.parameters = macs, parameters
        self.round_to, self.global_ranking, self.seed = round_to, global_ranking, seed

    def apply(self, encoder: Encoder, context: Context) -> Encoder:
        """A narrower copy of ``encoder``.

        ``context.record`` receives ``ratio``, ``groups`` (how many of how many were narrowed),
        and the parameters and MACs before and after.

        Raises:
            UserError: an architecture the graph cannot follow, nothing to prune, or a budget
                out of reach.
        """
        if not isinstance(encoder, nn.Module):
            raise UserError(f"prune cannot follow quantize: {encoder.path} is an ONNX file")
        groups = find_groups(encoder, self.scope, self._score)
        if not groups:
            needs = " with a batch norm" if self.criterion == "bn_scale" else ""
            raise UserError(
                f"prune: '{encoder.spec.name}' has no channels{needs} that scope={self.scope} "
                "may remove" + ("; try scope=all" if self.scope == "inner" else "")
            )
        ratio = self.ratio
        if ratio is None:
            ratio = self._search(encoder, groups, context)
        kept = self._kept(groups, ratio)
        narrowed = sum(len(k) < len(g.score_C) for g, k in zip(groups, kept, strict=True))
        if not narrowed:
            raise UserError(
                f"prune: round_to={self.round_to} leaves every width of '{encoder.spec.name}' "
                f"as it is at ratio {ratio:.3g}; lower round_to or remove more"
            )
        pruned = remove(encoder, groups, kept)
        verify(encoder, pruned)
        context.record.update(
            ratio=ratio,
            groups=f"{narrowed}/{len(groups)}",
            parameters_before=count_parameters(encoder),
            parameters_after=count_parameters(pruned),
            macs_before=count_macs(encoder),
            macs_after=count_macs(pruned),
        )
        return pruned

    def _score(self, group: torch_pruning.Group, index: int) -> Tensor | None:
        importance = torch_pruning.importance
        if self.criterion == "random":
            generator = torch.Generator().manual_seed(self.seed * 10_000 + index)
            return torch.rand(len(group[0].idxs), generator=generator)
        if self.criterion == "bn_scale":
            return importance.BNScaleImportance()(group)
        return importance.GroupMagnitudeImportance(p=2 if self.criterion == "l2" else 1)(group)

    def _kept(self, groups: list[ChannelGroup], ratio: float) -> list[Tensor]:
        """Indices of the channels that stay, ascending, by group."""
        if self.global_ranking:
            scores = torch.cat([g.score_C for g in groups])
            threshold = scores.sort().values[min(int(ratio * len(scores)), len(scores) - 1)]
            wanted = [int((g.score_C >= threshold).sum()) for g in groups]
        else:
            wanted = [len(g.score_C) * (1 - ratio) for g in groups]
        kept = []
        for group, width in zip(groups, wanted, strict=True):
            width = max(round(width / self.round_to), 1) * self.round_to
            width = min(width, len(group.score_C))
            kept.append(group.score_C.topk(width).indices.sort().values)
        return kept

    def _search(self, encoder: Encoder, groups: list[ChannelGroup], context: Context) -> float:
        """The smallest ratio that meets the budget."""
        key, share, measure = self._budget()
        budget = share * measure(encoder)

        def cost(ratio: float) -> int:
            return measure(remove(encoder, groups, self._kept(groups, ratio)))

        least = cost(1.0)
        if least > budget:
            raise UserError(
                f"prune: {key}={share} is out of reach for '{encoder.spec.name}': "
                f"scope={self.scope}, round_to={self.round_to} leave at least "
                f"{least / measure(encoder):.3f}"
            )
        low, high = 0.0, 1.0
        for _ in context.progress(range(BISECTIONS), f"prune to {share:.0%} of {key}"):
            middle = (low + high) / 2
            low, high = (low, middle) if cost(middle) <= budget else (middle, high)
        return high

    def _budget(self) -> tuple[str, float, Callable[[Encoder], int]]:
        if self.macs is not None:
            return "macs", self.macs, count_macs
        return "parameters", self.parameters, count_parameters
