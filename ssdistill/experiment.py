"""What may be written in a config: everything a run does, as frozen pydantic models."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, model_validator

from ssdistill.data.mixing import MixSettings
from ssdistill.distill.interpolate import InterpolateSettings
from ssdistill.evaluate.settings import EvaluateSettings
from ssdistill.models.backbones import EncoderSettings
from ssdistill.record.tracker import TrackingSettings
from ssdistill.record.verdict import ClaimSettings
from ssdistill.registry import LOSSES, METHODS, SOURCES, STEPS, TEACHERS
from ssdistill.settings import NonNegative, NonNegativeInt, OpenFraction, Settings
from ssdistill.train.optim import OptimSettings
from ssdistill.train.settings import DeviceSettings, TrainSettings


def kind_alone(value: Any) -> Any:
    """``data: cifar10`` is short for ``data: {kind: cifar10}``."""
    return {"kind": value} if isinstance(value, str) else value


def _own_row(name: str) -> str:
    reserved = {"pixels", "untrained", "teacher", "control", "distilled", "latency"}
    reserved |= {step.makes for step in STEPS.classes.values()}
    # pruned_2, control_time, …
    if name.split("_")[0] in reserved:
        raise ValueError(f"'{name}' is a name the chain gives to its own models")
    return name


RowName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"), AfterValidator(_own_row)]


TeacherName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]


class NetworkSettings(Settings):
    """One network of the chain."""

    encoder: EncoderSettings = EncoderSettings()


Method = Annotated[METHODS.union, BeforeValidator(kind_alone)]


class PretrainedTeacher(NetworkSettings):
    """A teacher that the experiment trains itself.

    Args:
        encoder: its network.
        pretrain: the method, with what differs from the experiment's ``pretrain``; null for that.
    """

    kind: Literal["pretrain"] = "pretrain"
    pretrain: Method | None = None


def _trained_here(value: Any) -> Any:
    """``teacher: {encoder: …}`` is one that the experiment trains."""
    if isinstance(value, dict) and "kind" not in value:
        return {"kind": PretrainedTeacher().kind, **value}
    return kind_alone(value)


TeacherSettings = Annotated[
    PretrainedTeacher | TEACHERS.union, Field(discriminator="kind"), BeforeValidator(_trained_here)
]


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
        teacher_dropping: of several teachers, the probability that an image does not learn from
            one of them; the one it is furthest from always teaches it (UNIC, arXiv:2408.05088).
    """

    losses: Annotated[dict[str, LOSSES.union], Field(min_length=1)]
    mix: MixSettings | None = None
    interpolate: InterpolateSettings | None = None
    teacher_dropping: OpenFraction | None = None

    @model_validator(mode="after")
    def _free_names(self) -> "DistillSettings":
        # loss/total and grad/norm are those of all losses together.
        taken = [name for name in ("total", "norm") if name in self.losses]
        if taken:
            raise ValueError(f"losses: '{taken[0]}' cannot be a loss's name, a metric has it")
        return self


class PretrainedRow(Settings):
    """A row of the table that is the teacher's encoder, pretrained in another way.

    Args:
        pretrain: the method, with what differs from the experiment's ``pretrain``.
        budget: ``steps``, those of the method's settings, or ``time``: as many as fit in the
            seconds that the experiment's own pretraining takes.
    """

    pretrain: Method
    budget: Literal["steps", "time"] = "steps"


def _row_type(value: Any) -> str:
    pretrains = "pretrain" in value if isinstance(value, dict) else hasattr(value, "pretrain")
    return "pretrained" if pretrains else "distill"


Row = Annotated[
    Annotated[PretrainedRow, Tag("pretrained")] | Annotated[DistillSettings, Tag("distill")],
    Discriminator(_row_type),
]


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
        teacher: the network to learn from: one that is pretrained here, or, by ``kind``, one
            that exists already (``ssdistill list teachers``).
        teachers: several of them by name, in place of ``teacher``; each loss then learns from
            every one.
        student: the network that learns; needed with ``distill``.
        pretrain: how the teacher (and the control) learns; needed unless all teachers exist.
        control: the student without a teacher; null for none.
        distill: how the student learns from the teacher; null stops after the teacher.
        compare: further rows of the table by name. A student, with what differs from
            ``distill`` (``losses`` given there stand in place of those of ``distill``), or, with
            ``pretrain``, the teacher's encoder pretrained in another way.
        compress: steps applied to the distilled student, in order.
        evaluate: probes, the only part that reads labels (with ``tracking.online_probe``, which
            watches a training with them); null leaves labels alone.
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
    teacher: TeacherSettings = PretrainedTeacher()
    teachers: dict[TeacherName, TeacherSettings] = Field(default={})
    student: NetworkSettings | None = None
    pretrain: Method | None = None
    control: ControlSettings | None = ControlSettings()
    distill: DistillSettings | None = None
    compare: dict[RowName, Row] = Field(default={})
    compress: tuple[Annotated[STEPS.union, BeforeValidator(kind_alone)], ...] = ()
    evaluate: EvaluateSettings | None = EvaluateSettings()
    tracking: TrackingSettings = TrackingSettings()
    device: DeviceSettings = DeviceSettings()
    checkpoint_seconds: NonNegative = 20.0
    paper: PaperSettings | None = None

    @model_validator(mode="after")
    def _complete(self) -> "Experiment":
        if self.teachers and "teacher" in self.model_fields_set:
            raise ValueError("teachers: give teacher or teachers, not both")
        if any(method is None for _, method in self.pretrained.values()):
            raise ValueError("pretrain: needed, unless teacher.kind names a teacher that exists")
        wanted = "control" in self.model_fields_set and self.control is not None
        if self.distill and wanted and self.pretrain is None:
            raise ValueError("control: needs a pretrain section, the method it learns by")
        if self.distill and self.student is None:
            raise ValueError("student: needed with distill")
        for name, row in self.compare.items():
            if name in self.all_teachers:
                raise ValueError(f"compare.{name}: the row of 'pretrain' has this name already")
            if isinstance(row, DistillSettings) and self.distill is None:
                raise ValueError(f"compare.{name}: needs a distill section to compare with")
            if isinstance(row, PretrainedRow) and self.teachers:
                raise ValueError(f"compare.{name}: pretrain compares with one teacher, not several")
            if isinstance(row, PretrainedRow) and not self.pretrained:
                raise ValueError(f"compare.{name}: the teacher is not pretrained here")
        return self

    @property
    def pretrained(self) -> dict[str, tuple[EncoderSettings, Settings]]:
        """Encoder and method of every teacher that is pretrained here, by its row's name."""
        return {
            role: (teacher.encoder, teacher.pretrain or self.pretrain)
            for role, teacher in self.all_teachers.items()
            if isinstance(teacher, PretrainedTeacher)
        }

    @property
    def all_teachers(self) -> dict[str, Settings]:
        """Every teacher by its row's name: ``teacher``, or ``teacher_<name>`` of several.

        Where nothing is distilled, a teacher pretrained here is called after its method.
        """
        if self.teachers:
            return {f"teacher_{name}": teacher for name, teacher in self.teachers.items()}
        method = getattr(self.teacher, "pretrain", None) or self.pretrain
        alone = self.distill is None and isinstance(self.teacher, PretrainedTeacher)
        return {method.kind if alone and method else "teacher": self.teacher}
