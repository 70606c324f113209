"""The stage that applies one compression step."""

from collections.abc import Mapping
from typing import Any

from ssdistill.chain.tasks import build_distiller
from ssdistill.chain.training import export, train
from ssdistill.chain.workspace import MODEL, Workspace
from ssdistill.compress import Context
from ssdistill.experiment import DistillSettings
from ssdistill.models.backbones import Encoder
from ssdistill.record.tracker import Tracker
from ssdistill.registry import STEPS
from ssdistill.stages import Stage
from ssdistill.train.seeding import seed_generators
from ssdistill.train.settings import TrainSettings


def compress(stage: Stage, workspace: Workspace, tracker: Tracker) -> dict[str, Any]:
    """The parent's encoder after one step; what the step reports becomes the metrics."""
    settings = STEPS.schema(stage.config["step"]["kind"]).model_validate(stage.config["step"])
    step = STEPS.build(settings)
    parents = stage.parents
    metrics: dict[str, Any] = {}

    teachers = {r: p for r, p in parents.items() if r not in ("model", "distilled")}

    def recover(
        student: Encoder, targets: Mapping[str, Encoder], training: TrainSettings
    ) -> Encoder:
        settings = DistillSettings.model_validate(stage.config["distill"]["training"])
        # What moves a fresh student towards the teacher would undo the pruning.
        settings = settings.model_copy(update={"interpolate": None})
        if len(targets) == 1:
            settings = _from_one(settings)
        distiller = build_distiller(student, targets, settings, stage, workspace)
        metrics.update(train(distiller, training, stage, workspace, tracker))
        return student

    folder = tracker.run.folder / MODEL
    folder.mkdir(exist_ok=True)
    context = Context(
        images=workspace.images,
        folder=folder,
        teachers={role: workspace.encoder(parent) for role, parent in teachers.items()},
        original=workspace.encoder(parents["distilled"]) if "distilled" in parents else None,
        train=recover if step.trains else None,
    )
    seed_generators(stage.seed, stage.digest)
    encoder = step.apply(workspace.encoder(parents["model"]), context)
    words = {name: value for name, value in context.record.items() if isinstance(value, str)}
    export(encoder, stage, tracker, parent="model", **words)
    numbers = {k: v for k, v in context.record.items() if isinstance(v, int | float)}
    return metrics | {f"compress/{name}": value for name, value in numbers.items()}


def _from_one(settings: DistillSettings) -> DistillSettings:
    """The settings without what they say of several teachers."""
    losses = {n: loss.model_copy(update={"teacher": None}) for n, loss in settings.losses.items()}
    return settings.model_copy(update={"losses": losses, "teacher_dropping": None})
