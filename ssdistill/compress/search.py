"""Search step: a compression level per layer, under one budget."""

from collections.abc import Sequence
from fnmatch import fnmatch
from typing import Annotated, cast

from pydantic import Field
from torch import Tensor

from ssdistill.compress import Context, Step, StepSettings
from ssdistill.compress.codes.mean_shifts import correct_shifts
from ssdistill.compress.preconditions import check_input_model
from ssdistill.compress.searching.actions import Actions, Allocation, Kind, as_json, embed
from ssdistill.compress.searching.allocate import (
    allocate,
    best_uniform_within,
    predict_damage,
    uniform_allocations,
)
from ssdistill.compress.searching.allocation_costs import AllocationCosts, Unit
from ssdistill.compress.searching.damages import Damages, Measure, damage, measure_damages
from ssdistill.compress.searching.measured_budget import allocate_within, measured_cost
from ssdistill.errors import UserError, nearest, not_one_of
from ssdistill.measure.pareto import FRONT, Front, FrontPoint
from ssdistill.models.model import Model
from ssdistill.settings import NonNegativeInt, OpenFraction, PositiveInt

BUDGETS = ("bytes", "macs", "parameters", "latency")


class Search(Step):
    """Choose a compression level for every layer to meet one budget.

    Exactly one of ``bytes``, ``macs``, ``parameters`` and ``latency`` says how much may be kept.
    Each action is tried on one layer at a time; its damage is what that does to the embeddings
    of unlabeled images. Damages add up closely enough (what was predicted and what was measured
    is recorded), so greedy steps, least damage for what is saved first, give many layers a
    level (an allocation). The best one with the same level in every layer is measured beside it,
    at a number of budgets: ``front.json`` has them all.

    Latency is searched through multiply-accumulates: a model is built, timed in ONNX Runtime,
    and its fraction of them adjusted until the time is within the budget.

    Args:
        bytes: fraction of the bytes of the file to keep at most; with ``bits`` alone this is for
            the file only: memory and speed stay as they are.
        macs: fraction of the multiply-accumulates to keep at most.
        parameters: fraction of the parameters to keep at most.
        latency: fraction of the time for one input to keep at most.
        actions: ``bits`` (2 to 8 a weight), ``width`` (fewer channels within blocks), ``rank``
            (a layer as two); by default ``bits`` for bytes and ``width`` for the others.
        damage: ``cosine`` (1 - centered cosine) or ``cka`` (1 - debiased CKA).
        layers: patterns of the layers that may be changed.
        images: unlabeled inputs for the damages; as many others evaluate the allocations.
        seed: which images.
        refit: refit in closed form what reads channels that were removed.
        round_to: kept widths are multiples of this.
        bias_correction: as in ``lowbit``, for the result.
        front: how many budgets beside its own are compared with uniform allocations.
    """

    kind = "search"
    paper = "mixed precision by sensitivity: Dong et al., NeurIPS 2020, arXiv:1911.03852"
    makes = "searched"
    reshapes = True

    def __init__(
        self,
        *,
        bytes: OpenFraction | None = None,
        macs: OpenFraction | None = None,
        parameters: OpenFraction | None = None,
        latency: OpenFraction | None = None,
        actions: Annotated[tuple[Kind, ...], Field(min_length=1)] | None = None,
        damage: Measure = "cosine",
        layers: tuple[str, ...] = ("*",),
        images: Annotated[int, Field(ge=16)] = 128,
        seed: int = 0,
        refit: bool = True,
        round_to: PositiveInt = 8,
        bias_correction: bool = True,
        front: NonNegativeInt = 4,
    ):
        requested = dict(zip(BUDGETS, (bytes, macs, parameters, latency), strict=True))
        budgets = {key: fraction for key, fraction in requested.items() if fraction is not None}
        if problem := not_one_of(requested):
            raise UserError(f"search: {problem}")
        ((self.budget, self.fraction),) = budgets.items()
        self.actions = actions or (("bits",) if self.budget == "bytes" else ("width",))
        if "bits" in self.actions and self.budget != "bytes":
            raise UserError(
                f"search: actions=[bits] reduces only bytes: set bytes instead of {self.budget}"
            )
        self.measure: Measure = damage
        self.layers, self.images, self.seed = layers, images, seed
        self.refit, self.round_to = refit, round_to
        self.bias_correction, self.front = bias_correction, front

    @classmethod
    def row(cls, settings: StepSettings) -> str:
        key = next(key for key in BUDGETS if getattr(settings, key) is not None)
        return f"{cls.makes}_{key}_{100 * getattr(settings, key):.3g}"

    def apply(self, model: Model, context: Context) -> Model:
        """A copy of ``model`` within the budget, as measured.

        ``context.record`` receives ``share`` (measured, of what the budget counts), ``changed``
        (how many things were done), ``predicted_damage`` and ``measured_damage`` of the allocation
        (the latter on other inputs), ``uniform_damage`` and ``uniform_share`` of the best
        uniform allocation within the budget, ``damage`` of the result after its bias correction,
        and how many damages were ``evaluated`` and ``reused``.

        Raises:
            UserError: a file for a runtime, weights that are not finite, a pattern that matches
                no layer, nothing that can be done, or a budget out of reach.
        """
        check_input_model(self.kind, model)
        inputs = context.images(2 * self.images, self.seed).to(model.device)
        search_inputs, held_out = inputs[::2], inputs[1::2]
        actions = self._actions(model, context, search_inputs)
        settings = f"refit={self.refit} round_to={self.round_to}"
        damages = measure_damages(actions, search_inputs, self.measure, context, settings)
        unit = cast("Unit", "macs" if self.budget == "latency" else self.budget)
        with measured_cost(self.budget, model) as (relative_cost, whole):
            costs = AllocationCosts(actions, unit, whole, damages.coded)
            facts = actions, damages, costs
            allocation, compressed, fraction = allocate_within(
                self.budget, self.fraction, *facts, relative_cost, context
            )
            scorer = _HeldOutDamage(actions, held_out, self.measure)
            front = self._front(allocation, scorer.damage_of(compressed), *facts, scorer, context)
            self._report(front.points[0], fraction, costs, context)
        corrected = False
        if self.bias_correction:
            coded = compressed.coded
            compressed, corrected = correct_shifts(compressed, model, search_inputs)
            compressed.coded = coded
        context.record.update(
            changed=len(allocation),
            damage=scorer.damage_of(compressed),
            corrected=int(corrected),
            evaluated=damages.evaluated,
            reused=damages.cached,
        )
        return compressed

    def _actions(self, model: Model, context: Context, inputs: Tensor) -> Actions:
        options = {"with_refit": self.refit, "round_to": self.round_to}
        actions = Actions(model, context, inputs, self.actions, **options)
        if not actions.levels:
            kinds = " or ".join(self.actions)
            raise UserError(
                f"search: '{model.name}' has no layer whose {kinds} can change; set other actions"
            )
        names = {site: site.layer.removesuffix(".weight") for site in actions.levels}
        for pattern in self.layers:
            if not any(fnmatch(name, pattern) for name in names.values()):
                hint = nearest(pattern, names.values())
                raise UserError(
                    f"search.layers: no layer that can change matches '{pattern}'{hint}; "
                    "correct the pattern"
                )
        actions.levels = {
            site: levels
            for site, levels in actions.levels.items()
            if any(fnmatch(names[site], pattern) for pattern in self.layers)
        }
        return actions

    def _front(
        self,
        own: Allocation,
        measured: float,
        actions: Actions,
        damages: Damages,
        costs: AllocationCosts,
        scorer: "_HeldOutDamage",
        context: Context,
    ) -> Front:
        """The result's point, and those of budgets that uniform allocations use up."""
        uniform = [(a, costs.total(a)) for a in uniform_allocations(actions)]
        own_cost = costs.total(own)
        budgets = _evenly_spaced(sorted({c for _, c in uniform if c < costs.whole}), self.front)
        allocations = [own, *allocate(actions, damages.of, costs, budgets)]
        points = []
        pairs = list(
            zip([max(own_cost, self.fraction * costs.whole), *budgets], allocations, strict=True)
        )
        for budget, allocation in context.progress(pairs, "searched and uniform plans"):
            if allocation is None:
                continue
            uniform_best = best_uniform_within(uniform, damages.of, budget)
            points.append(
                FrontPoint(
                    share=budget / costs.whole,
                    cost=costs.total(allocation),
                    predicted=predict_damage(allocation, damages.of),
                    measured=measured if allocation is own else scorer.damage_after(allocation),
                    uniform_cost=costs.total(uniform_best) if uniform_best else None,
                    uniform_measured=scorer.damage_after(uniform_best) if uniform_best else None,
                    plan=as_json(allocation),
                )
            )
        facts = actions.model.name, costs.unit, costs.whole, self.measure
        front = Front(*facts, tuple(points))
        if context.scratch:
            front.save(context.scratch / FRONT)
        return front

    def _report(
        self,
        point: FrontPoint,
        fraction: float,
        costs: AllocationCosts,
        context: Context,
    ) -> None:
        context.record.update(
            share=fraction,
            predicted_damage=point.predicted,
            measured_damage=point.measured,
        )
        if point.uniform_measured is not None and point.uniform_cost is not None:
            context.record.update(
                uniform_damage=point.uniform_measured,
                uniform_share=point.uniform_cost / costs.whole,
            )
        if self.actions == ("bits",):
            context.record["storage"] = "fewer bits in the file; memory and speed as before"


class _HeldOutDamage:
    """Damage of whole models, on inputs held out from the search."""

    def __init__(self, actions: Actions, inputs: Tensor, measure: Measure):
        self.actions, self.inputs = actions, inputs
        self.measure: Measure = measure
        self.reference_ND = embed(actions.model, inputs)

    def damage_of(self, model: Model) -> float:
        return damage(embed(model, self.inputs), self.reference_ND, self.measure)

    def damage_after(self, allocation: Allocation) -> float:
        return self.damage_of(self.actions.build(allocation))


def _evenly_spaced(values: Sequence[float], count: int) -> list[float]:
    """``count`` of the values, evenly spaced with both ends, or all where there are no more."""
    if count >= len(values):
        return list(values)
    if count < 2:
        return list(values[:count])
    return [values[round(i * (len(values) - 1) / (count - 1))] for i in range(count)]
