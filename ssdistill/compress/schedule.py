"""Pruning schedules: expand one prune step into rounds."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import ValidationError

from ssdistill.compress import StepSettings
from ssdistill.errors import UserError, not_one_of
from ssdistill.settings.registry import STEPS
from ssdistill.settings.wording import said_of

if TYPE_CHECKING:
    from ssdistill.settings.kinds.steps import PruneSettings, ZerosSettings

Schedule = Literal["linear", "cubic"]


def fraction_reached(schedule: Schedule, elapsed: float) -> float:
    """Fraction of the target reached after ``elapsed`` of the rounds, from 0 to 1.

    ``cubic`` is 1 - (1 - elapsed)^3 (Zhu and Gupta, arXiv:1710.01878, eq. 1, from sparsity 0).
    """
    return elapsed if schedule == "linear" else 1 - (1 - elapsed) ** 3


def rounds_of(settings: "PruneSettings", targets: Sequence[str]) -> list[StepSettings]:
    """The prune steps of all rounds with what comes between them.

    Args:
        settings: of a prune step.
        targets: its keys that say how much: ``ratio`` is a fraction to remove, the others to keep.

    Raises:
        UserError: ``recover`` is not what a recover step can be given.
    """
    if settings.rounds == 1:
        return [settings]
    key = next((key for key in targets if getattr(settings, key) is not None), None)
    if key is None:
        raise UserError(f"prune: {not_one_of(dict.fromkeys(targets))}")
    between = between_rounds(settings, settings.refit)
    steps: list[StepSettings] = []
    for number in range(1, settings.rounds + 1):
        fraction = fraction_reached(settings.schedule, number / settings.rounds)
        is_last = number == settings.rounds
        value = getattr(settings, key)
        target = value * fraction if key == "ratio" else 1 - (1 - value) * fraction
        one_round = {"rounds": 1, "of": "original", "recover": None, "refit": False}
        one_round |= {key: value if is_last else target, "gate": settings.gate if is_last else None}
        steps += [settings.model_copy(update=one_round), *([] if is_last else between)]
    return steps


def between_rounds(
    settings: "PruneSettings | ZerosSettings", refit: bool = False
) -> list[StepSettings]:
    """The steps that follow every round but the last.

    Raises:
        UserError: ``recover`` is not what a recover step can be given.
    """
    steps: list[StepSettings] = [STEPS.schema("refit")()] if refit else []
    if settings.recover is not None:
        schema = STEPS.schema("recover")
        try:
            steps.append(schema.model_validate({**settings.recover, "kind": "recover"}))
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join([f"{settings.kind}.recover", *map(str, first["loc"])])
            raise UserError(f"{key}: {said_of(first)}") from error
    return steps
