"""The sections of a config: networks, trainings, rows of the table, compression."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    model_serializer,
    model_validator,
)

from ssdistill.data.mixing import MixSettings
from ssdistill.distill.cache.settings import CacheSettings
from ssdistill.distill.interpolate import InterpolateSettings
from ssdistill.models.backbones import EncoderSettings
from ssdistill.settings import Name, OpenFraction, Settings
from ssdistill.settings.registry import LOSSES, METHODS, STEPS, TEACHERS
from ssdistill.train.optim import OptimSettings
from ssdistill.train.settings import TrainSettings

if TYPE_CHECKING:
    from ssdistill.settings.kinds.losses import AnySettings as AnyLoss
    from ssdistill.settings.kinds.methods import AnySettings as AnyMethod
    from ssdistill.settings.kinds.steps import AnySettings as AnyStep
    from ssdistill.settings.kinds.teachers import AnySettings as AnyTeacher
else:
    AnyLoss, AnyMethod = LOSSES.union, METHODS.union
    AnyStep, AnyTeacher = STEPS.union, TEACHERS.union


def kind_alone(value: Any) -> Any:
    """``data: cifar10`` is short for ``data: {kind: cifar10}``."""
    return {"kind": value} if isinstance(value, str) else value


def _without_null(value: Any) -> Any:
    """A null removes what an extended file has set."""
    if not isinstance(value, dict):
        return value
    return {name: item for name, item in value.items() if item is not None}


ROLES = {"pixels", "untrained", "teacher", "control", "distilled", "latency"}


def _not_reserved(name: str, reserved: set[str]) -> str:
    # pruned_2, control_time, …
    if name.split("_")[0] in reserved:
        raise ValueError(f"'{name}' is reserved for the chain's own models; choose another name")
    return name


def _check_row_name(name: str) -> str:
    return _not_reserved(name, ROLES | {step.makes for step in STEPS.classes.values()})


RowName = Annotated[Name, AfterValidator(_check_row_name)]
PlanName = Annotated[Name, AfterValidator(lambda name: _not_reserved(name, ROLES))]
TeacherName = Annotated[Name, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]


class NetworkSettings(Settings):
    """One network of the chain."""

    encoder: EncoderSettings = EncoderSettings()


Method = Annotated[AnyMethod, BeforeValidator(kind_alone)]


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
    PretrainedTeacher | AnyTeacher, Field(discriminator="kind"), BeforeValidator(_trained_here)
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
        losses: each with its ``kind``, ``weight`` and settings; null takes one out.
        mix: MixUp or CutMix of the views, the same for both networks; null for none.
        interpolate: move the student's weights towards the teacher's; null for not.
        teacher_dropping: of several teachers, the probability that an image does not learn from
            one of them; the one it is furthest from always teaches it (UNIC, arXiv:2408.05088).
        select: as in every training, or by ``agreement``: the weights whose embeddings of
            unlabeled training images agree best with the teacher's (debiased CKA).
        cache: record the teachers' outputs for ``views`` views of every image, which then repeat,
            instead of encoding every batch by the teachers; null for not.
    """

    select: Literal["last", "rankme", "lidar", "agreement"] = "last"
    losses: Annotated[dict[str, AnyLoss], Field(min_length=1), BeforeValidator(_without_null)]
    mix: MixSettings | None = None
    interpolate: InterpolateSettings | None = None
    teacher_dropping: OpenFraction | None = None
    cache: CacheSettings | None = None

    @model_serializer(mode="wrap")
    def _without_idle_cache(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content = self._without_idle_settings(handler)
        return {k: v for k, v in content.items() if k != "cache" or v is not None}

    @model_validator(mode="after")
    def _refuse_metric_names(self) -> "DistillSettings":
        # loss/total and grad/norm are those of all losses together.
        reserved_names = [name for name in ("total", "norm") if name in self.losses]
        if reserved_names:
            raise ValueError(
                f"losses: '{reserved_names[0]}' is the name of a metric; choose another name for "
                "the loss"
            )
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


class MeasureSettings(Settings):
    """Measurements of finished models beside their size.

    Args:
        latency: the time that each model takes for an image and for a batch, in turns with the
            others: a few seconds a model, and an export for ONNX Runtime.
        memory: peak memory of opening each model and running it on one image, in a process of
            its own: ten seconds a model or so.
    """

    latency: bool = True
    memory: bool = False

    @model_validator(mode="after")
    def _memory_is_measured_with_latency(self) -> "MeasureSettings":
        if self.memory and not self.latency:
            raise ValueError("memory: requires measure.latency=true, which measures both")
        return self

    @model_serializer(mode="wrap")
    def _without_usual_latency(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {k: v for k, v in handler(self).items() if k != "latency" or not v}


RECOVERY_LOSSES: dict[str, AnyLoss] = {"feature": LOSSES.schema("cosine")(kind="cosine")}
"""What a compressed model learns by where nothing was distilled."""
Steps = tuple[Annotated[AnyStep, BeforeValidator(kind_alone)], ...]
