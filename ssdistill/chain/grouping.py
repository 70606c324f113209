"""Columns to filter and group runs by, such as ``losses``."""

from typing import TYPE_CHECKING

from ssdistill.experiment.schema import Experiment
from ssdistill.experiment.sections import PretrainedTeacher, TeacherSettings
from ssdistill.record.run_record import kind_of

if TYPE_CHECKING:
    from ssdistill.chain.stages import Stage

JOINED = "+"
"""Between several losses, steps or teachers."""


def experiment_columns(experiment: Experiment) -> dict[str, str]:
    """Columns common to all stages of an experiment: ``experiment``, ``teacher`` and ``student``.

    A teacher is named with its origin: ``simclr:resnet18``, ``timm:vit_small_patch16_224.dino``.
    """
    teachers = (_teacher(one, experiment) for one in experiment.all_teachers.values())
    columns = {"experiment": experiment.name, "teacher": JOINED.join(dict.fromkeys(teachers))}
    if experiment.distill and experiment.student:
        columns["student"] = experiment.student.encoder.name
    return columns


def shared_columns(experiment: Experiment) -> dict[str, str]:
    """Return the columns of a run that holds a whole experiment.

    These include ``losses`` of its distillation and ``steps`` of its compression.
    """
    columns = experiment_columns(experiment)
    if experiment.distill:
        kinds = [loss.kind for loss in experiment.distill.losses.values()]
        columns["losses"] = JOINED.join(dict.fromkeys(kinds))
    if experiment.compress:
        columns["steps"] = JOINED.join(step.kind for step in experiment.compress)
    return columns


def stage_columns(stage: "Stage") -> dict[str, str | int]:
    """Return the columns that tell a stage from the others.

    They are ``row``, ``stage``, ``seed`` and, of the training that its model comes from, ``losses``
    or ``method``, and ``steps`` of compression.
    """
    columns: dict[str, str | int] = {"row": stage.role, "stage": stage.kind, "seed": stage.seed}
    steps = []
    for ancestor in _history(stage):
        if ancestor.kind == "compress":
            steps.append(kind_of(ancestor.config))
        elif ancestor.kind == "distill":
            columns["losses"] = kind_of(ancestor.config)
        elif ancestor.kind == "pretrain":
            columns["method"] = kind_of(ancestor.config)
    if steps:
        columns["steps"] = JOINED.join(reversed(steps))
    return columns


def _history(stage: "Stage") -> list["Stage"]:
    """Follow the lineage of a stage's model back to its training."""
    history = [stage]
    while (parent := history[-1].parents.get("model")) is not None:
        history.append(parent)
    return history if stage.kind != "latency" else [stage]


def _teacher(teacher: TeacherSettings, experiment: Experiment) -> str:
    encoder = getattr(teacher, "encoder", None)
    network = getattr(encoder, "name", None) or getattr(teacher, "name", None)
    origin = teacher.kind
    if isinstance(teacher, PretrainedTeacher):
        method = teacher.pretrain or experiment.pretrain
        origin = method.kind if method else origin
    return ":".join(filter(None, (origin, network)))
