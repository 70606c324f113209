"""Predict the cost of an allocation from its layers, without building the model."""

from collections import defaultdict
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, cast

import torch
from torch import Tensor, nn

from ssdistill.compress.factors.decompose import layer_cost
from ssdistill.compress.searching.actions import Actions, Site
from ssdistill.measure.macs import count_macs
from ssdistill.models.model import Model

Unit = Literal["bytes", "macs", "parameters"]
COMPUTING = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
DESCRIBED = 110
"""Bytes of file header per coded weight."""


class AllocationCosts:
    """The cost of any allocation for one model, in bytes, multiply-accumulates or parameters.

    Widths multiply (a layer may lose inputs and outputs), bits multiply with what is left. Only
    Huffman's code and rounding make this an estimate; what counts is measured in the end.
    """

    def __init__(
        self,
        actions: Actions,
        unit: Unit,
        whole: float,
        coded: Mapping[tuple[Site, float], int] = MappingProxyType({}),
    ):
        """Count what every action costs.

        Args:
            actions: what can be done.
            unit: what is counted.
            whole: measured cost of the model as it is.
            coded: bytes of weights on a grid, by site and bits.
        """
        self.actions, self.unit, self.whole, self.coded = actions, unit, whole, coded
        model = actions.model
        self.tensors: dict[str, list[tuple[str, Tensor]]] = defaultdict(list)
        for key, tensor in model.net.state_dict().items():
            self.tensors[key.rpartition(".")[0]].append((key, tensor))
        self.parameters = {key for key, _ in model.net.named_parameters()}
        self.macs = _layer_macs(model) if unit == "macs" else {}
        self.sides: dict[str, list[tuple[str, Site]]] = defaultdict(list)
        self.touched: dict[Site, list[str]] = {}
        for site in actions.levels:
            self.touched[site] = sorted(actions.touches(site))
            if site.kind == "width":
                members = actions.groups[site.layer].members
                for layer, side in dict.fromkeys((m.layer, m.side) for m in members):
                    self.sides[layer].append((side, site))
        self._fractions: dict[tuple[Site, float], float] = {}
        self.fixed_cost = whole - sum(self.layer(name, {}) for name in self._layers())

    def _layers(self) -> set[str]:
        return set(self.macs) if self.unit == "macs" else set(self.tensors)

    def total(self, allocation: Mapping[Site, float]) -> float:
        return self.fixed_cost + sum(self.layer(name, allocation) for name in self._layers())

    def saving(self, allocation: Mapping[Site, float], site: Site, level: float | None) -> float:
        """How much less it costs with ``level`` at ``site``; negative where that is milder."""
        changed = {**allocation, site: level}
        if level is None:
            del changed[site]
        return sum(self.layer(n, allocation) - self.layer(n, changed) for n in self.touched[site])

    def layer(self, name: str, allocation: Mapping[Site, float]) -> float:
        """What one layer costs within an allocation."""
        fractions = {"in": 1.0, "out": 1.0}
        for side, site in self.sides.get(name, ()):
            if site in allocation:
                fractions[side] *= self._kept_fraction(site, allocation[site])
        weight = fractions["in"] * fractions["out"]
        rank = allocation.get(Site("rank", name))
        if rank is not None:
            weight *= self._rank_fraction(name, rank)
        if self.unit == "macs":
            return self.macs.get(name, 0) * weight
        cost = 0.0
        for key, tensor in self.tensors.get(name, ()):
            fraction = weight if key.endswith(".weight") and tensor.ndim > 1 else fractions["out"]
            cost += self._tensor(key, tensor, allocation) * fraction
        return cost

    def _tensor(self, key: str, tensor: Tensor, allocation: Mapping[Site, float]) -> float:
        if self.unit == "parameters":
            return tensor.numel() if key in self.parameters else 0
        site = Site("bits", key)
        if site not in allocation:
            return tensor.nbytes
        return min(self.coded[site, allocation[site]] + DESCRIBED, tensor.nbytes)

    def _kept_fraction(self, site: Site, level: float) -> float:
        if (site, level) not in self._fractions:
            self._fractions[site, level] = self.actions.kept_fraction(site, level)
        return self._fractions[site, level]

    def _rank_fraction(self, name: str, fraction: float) -> float:
        if (Site("rank", name), fraction) not in self._fractions:
            layer = self.actions.model.net.get_submodule(name)
            rank = self.actions.rank(name, fraction)
            costs = [layer_cost(layer, r, "data").macs for r in (rank, None)]
            self._fractions[Site("rank", name), fraction] = costs[0] / costs[1]
        return self._fractions[Site("rank", name), fraction]


@torch.inference_mode()
def _layer_macs(model: Model) -> dict[str, float]:
    """Multiply-accumulates of one input by layer; what attention multiplies is not among them."""
    macs_by_layer: dict[str, float] = defaultdict(float)
    handles = []
    for name, module in model.net.named_modules():
        if not isinstance(module, COMPUTING):
            continue

        def note(layer: nn.Module, _: object, output: Tensor, name: str = name) -> None:
            outs = output.shape[-1] if isinstance(layer, nn.Linear) else output.shape[1]
            macs_by_layer[name] += output.numel() / outs * cast("Tensor", layer.weight).numel()

        handles.append(module.register_forward_hook(note))
    try:
        count_macs(model)
    finally:
        for handle in handles:
            handle.remove()
    return dict(macs_by_layer)
