"""What may be written in a config: everything a run does, as frozen pydantic models."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from ssdistill.data.mixing import MixSettings
from ssdistill.distill.interpolate import InterpolateSettings
from ssdistill.evaluate.settings import EvaluateSettings
from ssdistill.models.backbones import EncoderSettings
from ssdistill.record.tracker import TrackingSettings
from ssdistill.record.verdict import ClaimSettings
from ssdistill.registry import LOSSES, METHODS, SOURCES, STEPS
from ssdistill.settings import NonNegative, NonNegativeInt, Settings
from ssdistill.train.optim import OptimSettings
from ssdistill.train.settings import DeviceSettings, TrainSettings


def kind_alone(value: Any) -> Any:
    """``data: cifar10`` is short for ``data: {kind: cifar10}``."""
    return {"kind": value} if isinstance(value, str) else value


def _own_row(name: str) -> str:
    reserved = {"pixels", "untrained", "teacher", "control", "distilled"}
    reserved |= {step.makes for step in STEPS.classes.values()}
    # pruned_2, control_time, …
    if name.split("_")[0] in reserved:
        raise ValueError(f"'{name}' is a name the chain gives to its own models")
    return name


RowName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"), AfterValidator(_own_row)]


class NetworkSettings(Settings):
    """One network of the chain."""

    encoder: EncoderSettings = EncoderSettings()


class ControlSettings(Settings):
    """The student's encoder trained by the teacher's method, without a teacher.

    Args:
        budgets: what the control gets: ``steps``, as many as the distillation takes; ``time``,
            as many as fit in the seconds the distillation takes; ``total``, as many as fit in
            the seconds teacher and distillation take together.
        optim: optimizer, where it differs from the teacher's.
    """

    budgets: tuple[Literal["steps", "time", "total"], ...] = ("steps",)
    optim: OptimSettings | None = None


class DistillSettings(TrainSettings):
    """Distillation: the losses by name, and how long.

    Args:
        losses: each with its ``kind``, ``weight`` and settings.
        mix: MixUp or CutMix of the views, the same for both networks; null for none.
        interpolate: move the student's weights towards the teacher's; null for not.
    """

    losses: Annotated[dict[str, LOSSES.union], Field(min_length=1)]
    mix: MixSettings | None = None
    interpolate: InterpolateSettings | None = None

    @model_validator(mode="after")
    def _free_names(self) -> "DistillSettings":
        # loss/total and grad/norm are those of all losses together.
        taken = [name for name in ("total", "norm") if name in self.losses]
        if taken:
            raise ValueError(f"losses: '{taken[0]}' cannot be a loss's name, a metric has it")
        return self


class PaperSettings(Settings):
    """What the experiment claims, and whose claim it is.

    Args:
        claims: numbers (``profile: paper`` only) or orderings (any profile) to check.
        title, arxiv, table: where the claims come from, if from a paper.
        deviations: how the experiment differs from it.
    """

    claims: tuple[ClaimSettings, ...] = ()
    title: str | None = None
    arxiv: str | None = None
    table: str | None = None
    deviations: tuple[str, ...] = ()


class Experiment(Settings):
    """Everything a run does, in one frozen value.

    Args:
        schema_version: written ``schema``; version of this vocabulary.
        name: names the report and the W&B group.
        profile: ``paper`` runs may be compared with a paper's numbers, others never.
        seeds: every stage runs once per seed, unless it fixes its own.
        data: where the pictures come from.
        teacher, student: the two networks.
        pretrain: how the teacher (and the control) learns.
        control: the student without a teacher; null for none.
        distill: how the student learns from the teacher; null stops after the teacher.
        compare: further students by the name of their row, each with what differs from
            ``distill``; ``losses`` given there stand in place of those of ``distill``.
        compress: steps applied to the distilled student, in order.
        evaluate: probes, the only part that reads labels; null leaves labels alone.
        tracking: W&B and TensorBoard.
        device: hardware, number format.
        checkpoint_seconds: at most this much training is lost to a kill.
        paper: claims to check, with title and arXiv id where they are a paper's.
    """

    schema_version: Annotated[Literal[1], Field(alias="schema")]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    profile: Literal["paper", "reduced", "smoke"] = "reduced"
    seeds: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] = (0,)
    data: Annotated[SOURCES.union, BeforeValidator(kind_alone)]
    teacher: NetworkSettings = NetworkSettings()
    student: NetworkSettings
    pretrain: Annotated[METHODS.union, BeforeValidator(kind_alone)]
    control: ControlSettings | None = ControlSettings()
    distill: DistillSettings | None = None
    compare: dict[RowName, DistillSettings] = Field(default={})
    compress: tuple[Annotated[STEPS.union, BeforeValidator(kind_alone)], ...] = ()
    evaluate: EvaluateSettings | None = EvaluateSettings()
    tracking: TrackingSettings = TrackingSettings()
    device: DeviceSettings = DeviceSettings()
    checkpoint_seconds: NonNegative = 20.0
    paper: PaperSettings | None = None

    @model_validator(mode="after")
    def _compared_with_something(self) -> "Experiment":
        if self.compare and self.distill is None:
            raise ValueError("compare: needs a distill section to compare with")
        return self
