"""Actions on layers, their levels, and building a model from an allocation of them."""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor

from ssdistill.artifacts.coding.codes import Uniform
from ssdistill.compress import Context
from ssdistill.compress.codes.fake_quant import GridOptions, weights_of
from ssdistill.compress.factors.decompose import decompose, layer_cost
from ssdistill.compress.factors.factorize import replace
from ssdistill.compress.factors.moments import called_layers, output_stats
from ssdistill.compress.lowbit import put_on_grid
from ssdistill.compress.pruning.criteria import score_groups
from ssdistill.compress.pruning.graph import find_groups, remove
from ssdistill.compress.pruning.narrow import ChannelGroup
from ssdistill.compress.refit import refit
from ssdistill.models.model import Model

Kind = Literal["bits", "width", "rank"]
BITS = (8, 7, 6, 5, 4, 3, 2)
WIDTHS = (0.875, 0.75, 0.625, 0.5, 0.375, 0.25)
RANKS = (0.8, 0.65, 0.5, 0.4, 0.3, 0.2)
SLACK = 0.03
"""Approximate excess of a Huffman code over the entropy, in bits per symbol."""
GRID = GridOptions(clip="mse", per_channel=True, symmetric=False)


class Site(NamedTuple):
    """Site of one decision: a layer's weight, or channels by the layer that writes them."""

    kind: Kind
    layer: str

    def __str__(self) -> str:
        return f"{self.kind} {self.layer}"


Allocation = dict[Site, float]
"""Level by site: bits per weight, or the fraction of channels or weights that stays."""


class Actions:
    """Everything that may be done to the layers of one model.

    - ``bits``: the weight on a grid of 2 to 8 bits a number; for the file alone.
    - ``width``: fewer channels between two layers of a block, the smallest l2 norms going first.
      With ``refit`` what reads them is refitted in closed form.
    - ``rank``: the layer as two, along the principal axes of its output.

    Attributes:
        levels: by site what can be done there, from mild to severe.
    """

    def __init__(
        self,
        model: Model,
        context: Context,
        inputs: Tensor,
        kinds: Sequence[Kind],
        *,
        with_refit: bool = True,
        round_to: int = 8,
    ):
        self.model, self.inputs, self.with_refit, self.round_to = (
            model,
            inputs,
            with_refit,
            round_to,
        )
        self.levels: dict[Site, tuple[float, ...]] = {}
        self.groups: dict[str, ChannelGroup] = {}
        if "bits" in kinds:
            self.levels |= {Site("bits", key): BITS for key in weights_of(model.net)}
        if "width" in kinds:
            self._add_widths(context)
        if "rank" in kinds:
            self._add_ranks()

    def _add_widths(self, context: Context) -> None:
        groups = find_groups(
            self.model, "inner", lambda m, groups: score_groups("l2", m, groups, context)
        )
        for group in groups:
            remaining = {fraction: len(self._kept_units(group, fraction)) for fraction in WIDTHS}
            # Rounding makes some of them the same.
            levels = {width: fraction for fraction, width in reversed(remaining.items())}
            fractions = tuple(
                s for s in WIDTHS if s in levels.values() and remaining[s] < len(group.score_C)
            )
            if fractions:
                self.groups[group.root] = group
                self.levels[Site("width", group.root)] = fractions

    def _add_ranks(self) -> None:
        layers = dict(self.model.net.named_modules())
        for name in called_layers(self.model):
            dense = layer_cost(layers[name], None, "data").parameters
            fractions = tuple(
                fraction
                for fraction in RANKS
                if layer_cost(layers[name], self.rank(name, fraction), "data").parameters < dense
            )
            if fractions:
                self.levels[Site("rank", name)] = fractions
        names = [site.layer for site in self.levels if site.kind == "rank"]
        self.stats = output_stats(self.model, self.inputs, names) if names else {}

    def rank(self, name: str, fraction: float) -> int:
        """The rank at which a layer has this fraction of its weights, at least 1."""
        weight = cast("Tensor", self.model.net.get_submodule(name).weight)
        outs, inside = len(weight), weight[0].numel()
        return max(int(fraction * outs * inside / (outs + inside)), 1)

    def _kept_units(self, group: ChannelGroup, fraction: float) -> Tensor:
        units = len(group.score_C)
        rounding = max(self.round_to // group.width, 1)
        count = min(max(round(fraction * units / rounding), 1) * rounding, units)
        return group.score_C.topk(count).indices.sort().values

    def kept_fraction(self, site: Site, level: float) -> float:
        """Fraction of the channels that stay, rounding included."""
        group = self.groups[site.layer]
        return len(self._kept_units(group, level)) / len(group.score_C)

    def touches(self, site: Site) -> set[str]:
        """Names of the layers that change."""
        if site.kind == "width":
            return {member.layer for member in self.groups[site.layer].members}
        return {site.layer.removesuffix(".weight") if site.kind == "bits" else site.layer}

    def conflict(self, a: Site, b: Site) -> bool:
        """Whether two actions exclude each other: a layer loses channels or is factorized."""
        return {a.kind, b.kind} == {"width", "rank"} and bool(self.touches(a) & self.touches(b))

    def alone(self, site: Site, level: float) -> tuple[Model, int | None]:
        """The model with one action, and about how many bytes the weight takes if on a grid."""
        compressed = self.build({site: level})
        return compressed, grid_bytes(compressed.coded[site.layer]) if site.kind == "bits" else None

    def build(self, allocation: Mapping[Site, float]) -> Model:
        """A copy of the model with all of ``allocation`` done to it: widths, ranks, then bits."""
        compressed = copy.deepcopy(self.model)
        groups = [self.groups[site.layer] for site in allocation if site.kind == "width"]
        if groups:
            kept_units = [
                self._kept_units(group, allocation[Site("width", group.root)]) for group in groups
            ]
            compressed = remove(compressed, groups, kept_units)
            if self.with_refit:
                compressed = refit(
                    compressed, self.model, self.inputs, progress=lambda items, _: items
                )
        for site, fraction in allocation.items():
            if site.kind == "rank":
                layer = compressed.net.get_submodule(site.layer)
                factors = decompose(
                    layer, "data", self.rank(site.layer, fraction), self.stats[site.layer]
                )
                replace(compressed, site.layer, factors)
        bits = self._bits(compressed, allocation)
        return (put_on_grid(compressed, bits, **GRID) if bits else compressed).train(
            self.model.training
        )

    def _bits(self, compressed: Model, allocation: Mapping[Site, float]) -> dict[str, int]:
        """Bits by the keys of ``compressed``: those of a layer that has become two go for both."""
        planned_bits = {
            site.layer: int(level) for site, level in allocation.items() if site.kind == "bits"
        }
        bits_by_key = {}
        for key in weights_of(compressed.net):
            factorized_key = key.removesuffix(".weight").rpartition(".")[0] + ".weight"
            bits = planned_bits.get(key, planned_bits.get(factorized_key))
            if bits is not None:
                bits_by_key[key] = bits
        return bits_by_key


def grid_bytes(code: Uniform) -> int:
    """Bytes of a weight on its grid: what Huffman's code comes close to, or the fixed width."""
    counts = code.integers.to(torch.int64).flatten().sub(code.low).bincount()
    frequency = counts[counts > 0] / code.integers.numel()
    entropy = -(frequency * frequency.log2()).sum().item()
    floats = code.scale.numel() * (1 if code.zero is None else 2)
    return math.ceil(code.integers.numel() * min(code.bits, entropy + SLACK) / 8) + 2 * floats


@torch.inference_mode()
def embed(model: Model, inputs: Tensor) -> Tensor:
    """The embeddings (N, D) of all inputs at once, in eval mode."""
    was_training = model.training
    embedding_ND = model.eval()(inputs).embedding_BD
    model.train(was_training)
    return embedding_ND


def as_json(allocation: Mapping[Site, float]) -> dict[str, Any]:
    """An allocation as JSON: ``{"bits layer1.0.conv1.weight": 4}``."""
    return {
        str(site): int(level) if site.kind == "bits" else level
        for site, level in allocation.items()
    }
