"""Schema of a config, as frozen pydantic models."""

from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr, model_validator

from ssdistill.evaluate.settings import EvaluateSettings
from ssdistill.experiment.sections import (
    RECOVERY_LOSSES,
    ControlSettings,
    DistillSettings,
    MeasureSettings,
    Method,
    NetworkSettings,
    PlanName,
    PretrainedRow,
    PretrainedTeacher,
    Row,
    RowName,
    Steps,
    TeacherName,
    TeacherSettings,
    kind_alone,
)
from ssdistill.experiment.sweep import SweepSettings, Watched
from ssdistill.models.backbones import EncoderSettings
from ssdistill.record.tracker import TrackingSettings
from ssdistill.report.verdict import ClaimSettings
from ssdistill.settings import Name, NonNegative, NonNegativeInt, Settings
from ssdistill.settings.registry import SOURCES, STEPS
from ssdistill.train.settings import DeviceSettings

if TYPE_CHECKING:
    from ssdistill.settings.kinds.sources import AnySettings as AnySource
else:
    AnySource = SOURCES.union


def _as_list(seeds: Any) -> Any:
    """``seeds: 3`` is short for ``seeds: [3]``, as sweeps and job arrays write it."""
    return (seeds,) if isinstance(seeds, int) and not isinstance(seeds, bool) else seeds


def _check_seeds(seeds: tuple[int, ...]) -> tuple[int, ...]:
    twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
    if twice:
        raise ValueError(f"seed {twice[0]} is listed twice; list each seed once")
    return seeds


Seeds = Annotated[
    tuple[NonNegativeInt, ...],
    Field(min_length=1, max_length=1000),
    BeforeValidator(_as_list),
    AfterValidator(_check_seeds),
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
    """All settings of a run, frozen.

    Args:
        schema_version: written ``schema``; version of this vocabulary.
        name: names the report and the W&B group.
        profile: ``paper`` runs may be compared with a paper's numbers, others never.
        seeds: every stage runs once per seed, unless it fixes its own; a list, or one number.
        data: where the images come from.
        teacher: the network to learn from: one that is pretrained here, or, by ``kind``, one
            that exists already (``ssdistill list teachers``).
        teachers: several of them by name, in place of ``teacher``; each loss then learns from
            every one.
        student: the network that learns; required with ``distill``.
        pretrain: how the teacher (and the control) learns; required unless all teachers exist.
        control: the student without a teacher; null for none.
        distill: how the student learns from the teacher; null stops after the teacher.
        compare: further rows of the table by name. A student, with what differs from
            ``distill`` (``losses`` given there stand in place of those of ``distill``), or, with
            ``pretrain``, the teacher's encoder pretrained in another way.
        compress: steps applied in order to the distilled student, or to the teacher where there
            is no ``distill``.
        plans: further lists of steps by name, each applied to the same model; what two plans
            begin with alike is done once.
        evaluate: probes, the only part that reads labels (with ``tracking.online_probe``, which
            watches a training with them); null leaves labels alone.
        measure: what models of different sizes are measured by.
        tracking: W&B and TensorBoard.
        device: hardware, number format.
        checkpoint_seconds: at most this much training is lost to a kill.
        keep_checkpoints: keep the state after the last step of every training, so that ``extend``
            can go on with it (the size of weights and optimizer).
        paper: claims to check, with title and arXiv id where they are a paper's.
        sweep: run the experiment at many points, with other values of some settings.
    """

    # In an annotation, a checker would not see the alias.
    schema_version: Literal[1] = Field(alias="schema")
    name: Name
    profile: Literal["paper", "reduced", "smoke"] = "reduced"
    seeds: Seeds = (0,)
    data: Annotated[AnySource, BeforeValidator(kind_alone)]
    teacher: TeacherSettings = PretrainedTeacher()
    teachers: dict[TeacherName, TeacherSettings] = Field(default={})
    student: NetworkSettings | None = None
    pretrain: Method | None = None
    control: ControlSettings | None = ControlSettings()
    distill: DistillSettings | None = None
    compare: dict[RowName, Row] = Field(default={})
    compress: Steps = ()
    plans: dict[PlanName, Steps] = Field(default={})
    evaluate: EvaluateSettings | None = EvaluateSettings()
    measure: MeasureSettings = MeasureSettings()
    tracking: TrackingSettings = TrackingSettings()
    device: DeviceSettings = DeviceSettings()
    checkpoint_seconds: NonNegative = 20.0
    keep_checkpoints: bool = False
    paper: PaperSettings | None = None
    # No part of any hash: each of its points is an experiment like any other.
    sweep: Annotated[SweepSettings | None, Field(exclude=True)] = None
    _watched: Watched | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _complete(self) -> "Experiment":
        if self.teachers and "teacher" in self.model_fields_set:
            raise ValueError("teachers: teacher and teachers are both set; remove one of them")
        if any(method is None for _, method in self.pretrained.values()):
            raise ValueError("pretrain: required, unless teacher.kind names an existing teacher")
        control_requested = "control" in self.model_fields_set and self.control is not None
        if self.distill and control_requested and self.pretrain is None:
            raise ValueError("control: requires a pretrain section (the method it is trained by)")
        if self.distill and self.student is None:
            raise ValueError("student: required with distill; add a student section")
        for name, row in self.compare.items():
            if name in self.all_teachers:
                raise ValueError(
                    f"compare.{name}: the row of 'pretrain' already has this name; choose another"
                )
            if isinstance(row, DistillSettings) and self.distill is None:
                raise ValueError(f"compare.{name}: requires a distill section to compare with")
            if isinstance(row, PretrainedRow) and self.teachers:
                raise ValueError(
                    f"compare.{name}: pretrain requires a single teacher to compare with"
                )
            if isinstance(row, PretrainedRow) and not self.pretrained:
                raise ValueError(f"compare.{name}: requires a teacher that is pretrained here")
        self._check_plans()
        return self

    def _check_plans(self) -> None:
        if clash := self.plans.keys() & self.compare.keys():
            raise ValueError(
                f"plans.{min(clash)}: compare already has a row of this name; choose another"
            )
        if self.distill is None and self.teachers and any(self.compression_variants.values()):
            raise ValueError(
                "compress: ambiguous with several teachers; add distill, or keep one teacher"
            )
        for variant, steps in self.compression_variants.items():
            for number, (first, second) in enumerate(pairwise(steps), start=1):
                if STEPS[first.kind].leaf and not STEPS[second.kind].leaf:
                    key = f"plans.{variant}.{number}" if variant else f"compress.{number}"
                    raise ValueError(
                        f"{key}: {second.kind} cannot follow {first.kind}, which makes a file for "
                        "a runtime; place it before, or in a plan of its own under plans"
                    )

    @property
    def watched(self) -> Watched | None:
        """The trial of a sweep that may stop this experiment early; no part of what it is."""
        return self._watched

    def as_point(self, watched: Watched | None = None) -> "Experiment":
        """The experiment alone, without its sweep; one of the sweep's points."""
        point = self.model_copy(update={"sweep": None})
        # A checker takes private attributes of a frozen class for frozen; pydantic does not.
        point._watched = watched  # pyright: ignore[reportAttributeAccessIssue]
        return point

    @property
    def compression_variants(self) -> dict[str, Steps]:
        """Every list of steps by name; that of ``compress`` has none."""
        return {"": self.compress, **self.plans}

    @property
    def compressed(self) -> str | None:
        """Role of the model that is compressed; None where nothing is."""
        if not any(self.compression_variants.values()):
            return None
        return "distilled" if self.distill else next(iter(self.all_teachers))

    @property
    def recovery(self) -> DistillSettings:
        """Settings of fine-tuning after compression, whose teachers encode every batch."""
        distill = self.distill or DistillSettings(steps=1, losses=RECOVERY_LOSSES)
        aside = {"cache": None, "extend": None}
        return distill.model_copy(update=aside) if distill.cache or distill.extend else distill

    @property
    def pretrained(self) -> dict[str, tuple[EncoderSettings, Method]]:
        """Encoder and method of every teacher that is pretrained here, by its row's name."""
        return {
            # Required where one is pretrained here: _complete refuses an experiment without.
            role: (teacher.encoder, cast("Method", teacher.pretrain or self.pretrain))
            for role, teacher in self.all_teachers.items()
            if isinstance(teacher, PretrainedTeacher)
        }

    @property
    def all_teachers(self) -> dict[str, TeacherSettings]:
        """Every teacher by its row's name: ``teacher``, or ``teacher_<name>`` of several.

        Where nothing is distilled, a teacher pretrained here is called after its method.
        """
        if self.teachers:
            return {f"teacher_{name}": teacher for name, teacher in self.teachers.items()}
        method = getattr(self.teacher, "pretrain", None) or self.pretrain
        alone = self.distill is None and isinstance(self.teacher, PretrainedTeacher)
        return {method.kind if alone and method else "teacher": self.teacher}
