"""Choose the rank of every layer: by energy, by cost, or within a budget."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import NamedTuple, cast

from torch import Tensor, nn

from ssdistill.compress.factors.decompose import Cost, Method, layer_cost, spectrum
from ssdistill.compress.factors.moments import Moments, Positions
from ssdistill.models.factorized import Rank


class Option(NamedTuple):
    """A rank of one layer, with its loss and cost.

    Attributes:
        rank: None leaves it as it is.
        loss: fraction of the energy that is lost, 0 to 1; for ``tucker`` at most this.
        cost: parameters and MACs.
    """

    rank: Rank | None
    loss: float
    cost: Cost


@dataclass(frozen=True)
class Choices:
    """A layer, as it is and in all factorizations that are cheaper.

    Attributes:
        dense: the layer as it is.
        factors: by falling cost in parameters; each has fewer parameters and fewer MACs than
            ``dense``, so that no layer is factorized only to become larger or slower.
    """

    dense: Option
    factors: Sequence[Option]


def list_choices(
    layer: nn.Module,
    method: Method,
    positions: Positions,
    round_to: int,
    stats: Moments | None = None,
) -> Choices:
    """List ranks that are multiples of ``round_to`` and reduce the cost."""
    tails = [_energy_beyond(values) for values in spectrum(layer, method, stats)]
    dense = Option(None, 0.0, layer_cost(layer, None, method, positions))
    choices = []
    for ranks in product(*(range(round_to, len(tail), round_to) for tail in tails)):
        rank = cast("Rank", ranks if len(tails) > 1 else ranks[0])
        cost = layer_cost(layer, rank, method, positions)
        if cost.parameters < dense.cost.parameters and cost.macs < dense.cost.macs:
            loss = sum(tail[r] for tail, r in zip(tails, ranks, strict=True))
            choices.append(Option(rank, min(loss, 1.0), cost))
    return Choices(dense, sorted(choices, key=lambda option: -option.cost.parameters))


def _energy_beyond(energies_R: Tensor) -> list[float]:
    """Fraction of the energy beyond the first r, for r from 0 to all."""
    total = energies_R.sum()
    if total <= 0:
        return [0.0] * (len(energies_R) + 1)
    beyond = energies_R.flip(0).cumsum(0).flip(0) / total
    return [*beyond.tolist(), 0.0]


def cheapest_with_energy(choices: Choices, energy: float) -> Option:
    """Cheapest option that keeps the fraction ``energy``; the layer itself if none does."""
    return next((o for o in reversed(choices.factors) if 1 - o.loss >= energy), choices.dense)


def best_within_fraction(choices: Choices, keep: float) -> Option:
    """Option of least loss with at most the fraction ``keep`` of the parameters."""
    most_parameters = keep * choices.dense.cost.parameters
    cheap_enough = [
        option for option in choices.factors if option.cost.parameters <= most_parameters
    ]
    return min(cheap_enough, key=lambda option: option.loss, default=choices.dense)


def most_saved(layers: Mapping[str, Choices], key: str) -> float:
    """Total saving of ``key`` (``parameters`` or ``macs``) at the smallest ranks."""
    return sum(
        max(getattr(c.dense.cost, key) - getattr(o.cost, key) for o in (c.dense, *c.factors))
        for c in layers.values()
    )


def options_saving(layers: Mapping[str, Choices], key: str, saving: float) -> dict[str, Option]:
    """Ranks that together save ``saving`` of ``key`` at the least loss of energy.

    Layer by layer only the lower convex hull of loss over cost matters: going down the hulls of
    all layers in the order of their slopes, energy lost per cost saved, is optimal for every
    cost it passes through. The last move goes only as far as it must.

    Args:
        layers: by name.
        key: ``parameters`` or ``macs``.
        saving: how much must go; the lowest ranks are returned where even they save less.
    """
    chosen = {name: choices.dense for name, choices in layers.items()}
    moves = []
    for name, choices in layers.items():
        path = [choices.dense, *_hull([choices.dense, *choices.factors], key)]
        moves += [(_slope(a, b, key), name, b) for a, b in pairwise(path) if a is not b]
    for _, name, option in sorted(moves, key=lambda move: move[0]):
        saving -= getattr(chosen[name].cost, key) - getattr(option.cost, key)
        chosen[name] = option
        if saving <= 0:
            limit = getattr(option.cost, key) - saving
            cheap_enough = [o for o in layers[name].factors if getattr(o.cost, key) <= limit]
            chosen[name] = min(cheap_enough, key=lambda o: o.loss)
            break
    return chosen


def _slope(a: Option, b: Option, key: str) -> float:
    return (b.loss - a.loss) / (getattr(a.cost, key) - getattr(b.cost, key))


def _hull(options: Sequence[Option], key: str) -> list[Option]:
    """The lower convex hull of loss over cost, from the dearest on, losses rising."""
    hull: list[Option] = []
    for option in sorted(options, key=lambda o: (-getattr(o.cost, key), o.loss)):
        if hull and getattr(option.cost, key) == getattr(hull[-1].cost, key):
            continue
        while hull and option.loss <= hull[-1].loss:
            hull.pop()
        while len(hull) > 1 and _slope(hull[-1], option, key) <= _slope(hull[-2], hull[-1], key):
            hull.pop()
        hull.append(option)
    return hull
