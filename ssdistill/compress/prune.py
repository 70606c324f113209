"""Structured pruning step: remove whole channels, heads and blocks."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from pydantic import Field

from ssdistill.compress import Context, Step, StepSettings
from ssdistill.compress.bisection import bisect_to_budget, bisect_to_cka
from ssdistill.compress.comparing import cka_with
from ssdistill.compress.preconditions import refuse_file, refuse_non_finite
from ssdistill.compress.pruning.blocks import rank_blocks, without
from ssdistill.compress.pruning.criteria import Criterion, score_groups
from ssdistill.compress.pruning.graph import Prunable, Scope, remove, survey, verify
from ssdistill.compress.pruning.ranking import best, dense_units
from ssdistill.compress.schedule import Schedule, rounds_of
from ssdistill.errors import UserError, nearest, not_one_of
from ssdistill.measure.macs import count_macs
from ssdistill.measure.parameters import count_parameters
from ssdistill.models.model import Model
from ssdistill.settings import OpenFraction, PositiveInt

if TYPE_CHECKING:
    from ssdistill.settings.kinds.steps import PruneSettings

Unit = Literal["channels", "heads", "blocks"]
TARGETS = ("ratio", "macs", "parameters", "bytes", "latency", "cka")


class Prune(Step):
    """Structured pruning along the dependency graph of Torch-Pruning.

    Exactly one of ``ratio``, ``macs``, ``parameters``, ``bytes``, ``latency`` and ``cka`` says
    how much; all but the first find the ratio by bisection: the largest network within the
    budget, or, for ``cka``, the smallest whose embeddings agree as they must. The
    embedding width never changes. Layers that cannot lose channels stay whole and are named in
    the record. Weights are not retrained here: let a refit, recalibration or recovery follow.

    Args:
        units: what is removed: ``channels`` of convolutions and linear layers, whole attention
            ``heads``, or residual ``blocks`` (alone). Blocks go by what the embedding of
            unlabeled images loses without each (1 - debiased CKA), whatever the criterion.
        criterion: which channels and heads go first: those with the smallest norm of weights
            (``l2``, ``l1``), batch-norm scale (``bn_scale``) or ``lamp`` score, the smallest
            effect on what reads them (``activation``), or on the distillation loss (``taylor``,
            ``hessian``); or ``random``; see :mod:`ssdistill.compress.pruning.criteria`.
        scope: ``inner`` removes only channels within a block, which no residual addition and no
            concatenation touches; ``all`` also the residual stream and the stem.
        ratio: fraction of the prunable units to remove.
        macs: fraction of the multiply-accumulates to keep at most.
        parameters: fraction of the parameters to keep at most.
        bytes: fraction of the bytes of the weights file to keep at most.
        latency: fraction of the time for one input to keep at most: in ONNX Runtime on one thread,
            measured in turns with the network before.
        cka: the least debiased CKA to keep, on ``images`` unlabeled inputs, before anything is
            refitted or trained.
        of: what these are fractions of: the model the step is given, or the ``original``, before
            the first compression step.
        round_to: kept widths are multiples of this (and at least this), but for heads.
        global_ranking: rank the units of all layers together (scores divided by their layer's
            mean, but for ``lamp``) instead of removing the same fraction everywhere.
        protect: names of layers that keep their shape, and with them all that goes with them.
        rounds: prune in so many rounds, each a stage of its own, to targets that are fractions of
            the original; a gate holds for the last.
        schedule: how the target moves over the rounds: ``linear``, or ``cubic``, most of it
            early (Zhu and Gupta, arXiv:1710.01878, eq. 1).
        recover: settings of a recover step between rounds; none follows the last.
        refit: let a refit step follow every round but the last.
        images: unlabeled inputs for ``activation``, blocks and ``cka``.
        seed: which images, and of ``criterion: random``.
    """

    kind = "prune"
    paper = "Fang et al., CVPR 2023, arXiv:2301.12900"
    makes = "pruned"
    reshapes = True

    def __init__(
        self,
        *,
        units: Annotated[tuple[Unit, ...], Field(min_length=1)] = ("channels", "heads"),
        criterion: Criterion = "l2",
        scope: Literal["inner", "all"] = "inner",
        ratio: OpenFraction | None = None,
        macs: OpenFraction | None = None,
        parameters: OpenFraction | None = None,
        bytes: OpenFraction | None = None,
        latency: OpenFraction | None = None,
        cka: OpenFraction | None = None,
        of: Literal["parent", "original"] = "parent",
        round_to: PositiveInt = 8,
        global_ranking: bool = False,
        protect: tuple[str, ...] = (),
        rounds: PositiveInt = 1,
        schedule: Schedule = "linear",
        recover: dict[str, Any] | None = None,
        refit: bool = False,
        images: PositiveInt = 256,
        seed: int = 0,
    ):
        targets = dict(zip(TARGETS, (ratio, macs, parameters, bytes, latency, cka), strict=True))
        chosen_targets = {key: value for key, value in targets.items() if value is not None}
        if problem := not_one_of(targets):
            raise UserError(f"prune: {problem}")
        if "blocks" in units and len(units) > 1:
            raise UserError(
                "prune: units=[blocks] cannot be combined with other units: use separate prune "
                "steps"
            )
        if rounds == 1 and (recover is not None or refit):
            raise UserError("prune: recover and refit run between rounds: set rounds above 1")
        (self.target,) = chosen_targets.items()
        self.ratio = ratio
        self.criterion: Criterion = criterion
        self.scope: Scope = scope
        self.units, self.of = units, of
        self.round_to, self.global_ranking, self.protect = round_to, global_ranking, protect
        self.rounds, self.images, self.seed = rounds, images, seed

    @classmethod
    def expand(cls, settings: "PruneSettings") -> list[StepSettings]:
        return rounds_of(settings, TARGETS)

    @classmethod
    def learns(cls, settings: "PruneSettings") -> bool:
        return settings.criterion in ("taylor", "hessian")

    def apply(self, model: Model, context: Context) -> Model:
        """A smaller copy of ``model``.

        ``context.record`` receives ``ratio``, the ``share`` of what a budget counts, how many
        groups were ``prunable`` and how many ``layers`` write fewer channels, which ``blocks``
        were removed, the parameters and MACs before and after, and what stayed ``whole`` and why.

        Raises:
            UserError: weights that are not finite, a network that cannot be followed, nothing to
                prune, a budget out of reach, or a criterion that lacks what it needs.
        """
        refuse_file(self.kind, model)
        if self.rounds > 1:
            raise UserError("prune: rounds above 1 must be expanded into steps: call Prune.expand")
        reference = context.original if self.of == "original" else model
        if reference is None:
            raise UserError("prune: of=original requires context.original")
        refuse_non_finite(self.kind, model)
        make, limits = (self._blocks if "blocks" in self.units else self._units)(model, context)
        key, value = self.target
        ratio, cost_fraction = value, None
        if key == "cka":
            cka = cka_with(reference, context.images(self.images, self.seed))
            ratio, context.record["cka"] = bisect_to_cka(value, make, cka, context)
        elif key != "ratio":
            ratio, cost_fraction = bisect_to_budget(key, value, make, reference, context, limits)
        pruned = make(ratio)
        changed = self._report(model, pruned, context)
        if not changed and self.of == "parent":
            if "blocks" in self.units:
                raise UserError(
                    f"prune: ratio={ratio:.3g} of the blocks of '{model.name}' rounds to zero "
                    "blocks; raise it"
                )
            raise UserError(
                f"prune: round_to={self.round_to} leaves all widths of '{model.name}' "
                f"unchanged at ratio {ratio:.3g}; lower round_to or raise the ratio"
            )
        if changed:
            verify(model, pruned)
        context.record.update(
            ratio=ratio, **({} if cost_fraction is None else {"share": cost_fraction})
        )
        return pruned

    def _blocks(self, model: Model, context: Context) -> tuple[Callable[[float], Model], str]:
        """Return a function that removes a ratio of the blocks, and a phrase for its limit."""
        blocks = rank_blocks(
            model, self.protect, context.images(self.images, self.seed), context.progress
        )
        removed_before = (
            len(model.removed) if self.of == "original" and self.target[0] == "ratio" else 0
        )

        def make(ratio: float) -> Model:
            count = int(ratio * (len(blocks) + removed_before) + 0.5) - removed_before
            return without(model, blocks[: min(max(count, 0), max(len(blocks) - 1, 1))])

        return make, f"all but one of {len(blocks)} blocks,"

    def _units(self, model: Model, context: Context) -> tuple[Callable[[float], Model], str]:
        """Return a function that removes a ratio of the units, and a phrase for its limit."""
        prunable = self._prunable(model)
        scores = score_groups(
            self.criterion, model, prunable.groups, context, self.images, self.seed
        )
        pairs = zip(prunable.groups, scores, strict=True)
        groups = [replace(group, score_C=s) for group, s in pairs if s is not None]
        if not groups:
            raise UserError(
                f"prune: '{model.name}' has no {' or '.join(self.units)} with a batch norm that "
                f"scope={self.scope} may remove; set another criterion, units or scope"
            )
        fixed = self.of == "original" and self.ratio is not None
        # Of the original: apply has seen that there is one.
        widths = dense_units(groups, model, cast("Model", context.original)) if fixed else None
        relative = self.criterion != "lamp"
        context.record["prunable"] = len(groups)
        if prunable.whole:
            context.record["whole"] = _reasons_text(prunable.whole)
        limits = f"scope={self.scope}, round_to={self.round_to}"
        keep = partial(best, groups, widths, self.round_to, self.global_ranking, relative)
        return lambda ratio: remove(model, groups, keep(ratio)), limits

    def _prunable(self, model: Model) -> Prunable:
        layers = dict(model.net.named_modules())
        for name in self.protect:
            if name not in layers:
                raise UserError(
                    f"prune.protect: '{model.name}' has no layer '{name}'{nearest(name, layers)}; "
                    "correct the name"
                )
        prunable = survey(model, self.scope, self.units, self.protect)
        if not prunable.groups:
            inner = self.scope == "inner" and "channels" in self.units
            why = "; set scope=all" if inner else "; set other units or another scope"
            if prunable.whole:
                why = f": {_reasons_text(prunable.whole)}"
            raise UserError(
                f"prune: '{model.name}' has no {' or '.join(self.units)} that "
                f"scope={self.scope} may remove{why}"
            )
        return prunable

    def _report(self, model: Model, pruned: Model, context: Context) -> int:
        """Record what was removed; return the number of changed layers or blocks."""
        before, after = count_parameters(model), count_parameters(pruned)
        narrowed = [
            name
            for name, remaining in pruned.channels.items()
            if model.channels.get(name) != remaining
        ]
        blocks = [name for name in pruned.removed if name not in model.removed]
        context.record.update(
            layers=len(narrowed),
            parameters_before=before,
            parameters_after=after,
            macs_before=count_macs(model),
            macs_after=count_macs(pruned),
        )
        if blocks:
            context.record["blocks"] = " ".join(blocks)
        return len(narrowed) + len(blocks)


def _reasons_text(whole: Mapping[str, str]) -> str:
    """The first few layers of each reason."""
    layers: dict[str, list[str]] = {}
    for name, reason in whole.items():
        layers.setdefault(reason, []).append(name)
    more = lambda names: f" and {len(names) - 3} more" if len(names) > 3 else ""  # noqa: E731
    return "; ".join(f"{', '.join(n[:3])}{more(n)} ({reason})" for reason, n in layers.items())
