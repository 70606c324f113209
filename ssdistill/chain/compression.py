"""Stage that applies one compression step, measures it and applies its gate."""

from collections.abc import Iterator, Mapping
from typing import Any, cast

from torch import Tensor

from ssdistill.artifacts.artifact import load, save_encoder
from ssdistill.chain.saliency import HEAD_STEPS, iterate_total_losses
from ssdistill.chain.stages import Stage
from ssdistill.chain.tasks import build_distiller
from ssdistill.chain.training import export, prepare, train
from ssdistill.chain.workspace import MODEL, Workspace
from ssdistill.compress import Context, StepSettings
from ssdistill.errors import UserError
from ssdistill.experiment.sections import DistillSettings
from ssdistill.measure.before_after import agreed_on, before_after
from ssdistill.models.backbones import Encoder
from ssdistill.record.tracker import Tracker
from ssdistill.settings.registry import STEPS
from ssdistill.train.progress import console
from ssdistill.train.seeding import derive_seed, seed_generators
from ssdistill.train.settings import TrainSettings

MEASURED_IMAGES = 1024
"""Unlabeled images on which a step's input and result are compared."""
OWN = ("model", "before", "original")
"""Parents of a compression step other than teachers."""


def compress(stage: Stage, workspace: Workspace, tracker: Tracker) -> dict[str, Any]:
    """Apply one step to the parent's encoder; its report becomes the metrics."""
    settings = STEPS.schema(stage.config["step"]["kind"]).model_validate(stage.config["step"])
    step, input_encoder = STEPS.build(settings), workspace.encoder(stage.parents["model"])
    metrics: dict[str, Any] = {}
    context = _context(stage, workspace, tracker, step.learns(settings), metrics)
    seed_generators(stage.seed, stage.digest)
    compressed = step.apply(input_encoder, context)
    words = {name: value for name, value in context.record.items() if isinstance(value, str)}
    numbers = {k: v for k, v in context.record.items() if isinstance(v, int | float)}
    metrics |= {f"compress/{name}": value for name, value in numbers.items()}
    save_encoder(cast("Encoder", compressed), context.folder)
    # What is measured is what a user gets: the file, opened again.
    compressed = load(context.folder, check_inputs=False)
    images = workspace.images(MEASURED_IMAGES, derive_seed(0, "measured"))
    measured, facts = before_after(
        input_encoder,
        compressed,
        images,
        stage.parents["model"].folder(workspace.root) / MODEL,
        context.folder,
    )
    for end, model in (("_before", input_encoder), ("", compressed)):
        agreed = agreed_on(context.original, model, images)
        measured |= {f"{k.replace('agree/', 'agree/original/')}{end}": v for k, v in agreed.items()}
    # A step may have found for itself that its input was better.
    accepted = _passes(stage, settings, facts) and context.record.get("accepted", 1)
    words["runtime"] = facts["runtime"]
    chosen = compressed if accepted else input_encoder
    export(chosen, stage, workspace, tracker, parent="model", **words)
    return metrics | measured | {"compress/accepted": int(accepted)}


def _passes(stage: Stage, settings: StepSettings, facts: Mapping[str, Any]) -> bool:
    """Whether the step counts.

    Raises:
        UserError: it does not, and its gate refuses.
    """
    gate = settings.gate
    complaints = gate.complaints(facts) if gate else []
    if gate and complaints and gate.otherwise == "refuse":
        raise UserError(
            f"{settings.kind} ({stage.role}) was rejected by its gate: {'; '.join(complaints)}; "
            "relax the gate, or set gate.otherwise=keep to skip the step"
        )
    for complaint in complaints:
        console.print(f"  {settings.kind} skipped by its gate: {complaint}")
    return not complaints


def _context(
    stage: Stage, workspace: Workspace, tracker: Tracker, learns: bool, metrics: dict[str, Any]
) -> Context:
    parents = stage.parents
    teachers = {role: parent for role, parent in parents.items() if role not in OWN}
    training = _Training(stage, workspace, tracker, metrics)
    folder = tracker.run.folder / MODEL
    folder.mkdir(exist_ok=True)
    return Context(
        images=workspace.images,
        folder=folder,
        scratch=tracker.run.folder,
        original=workspace.encoder(parents["original"]),
        before=workspace.encoder(parents["before"]),
        teachers={role: workspace.encoder(parent) for role, parent in teachers.items()},
        # The models of a chain are encoders.
        train=cast("Any", training.train) if learns else None,
        losses=cast("Any", training.losses) if learns else None,
    )


class _Training:
    """The chain's distillation losses, for the steps that learn."""

    def __init__(
        self, stage: Stage, workspace: Workspace, tracker: Tracker, metrics: dict[str, Any]
    ):
        self.stage, self.workspace = stage, workspace
        self.tracker, self.metrics = tracker, metrics

    def _settings(self, targets: Mapping[str, Encoder]) -> DistillSettings:
        config = self.stage.config["distill"]["training"]
        # What moves a fresh student towards the teacher would undo the pruning.
        settings = DistillSettings.model_validate(config).model_copy(update={"interpolate": None})
        return _from_one(settings) if len(targets) == 1 else settings

    def train(
        self, student: Encoder, targets: Mapping[str, Encoder], training: TrainSettings
    ) -> Encoder:
        """``student``, trained to follow the targets."""
        settings = self._settings(targets)
        training = cut_like(training, settings)
        distiller = build_distiller(student, targets, settings, self.stage, self.workspace)
        metrics = train(distiller, training, self.stage, self.workspace, self.tracker)
        self.metrics.update(metrics)
        return student

    def losses(
        self, student: Encoder, targets: Mapping[str, Encoder], count: int, seed: int
    ) -> Iterator[Tensor]:
        """The total loss of ``count`` batches, once the losses' own heads know the student."""
        settings = self._settings(targets)
        distiller = build_distiller(student, targets, settings, self.stage, self.workspace)
        steps, order = HEAD_STEPS + count, f"damage {seed}"
        args = (settings, self.stage, self.workspace, steps, order)
        training, fabric = prepare(distiller, *args, shared_out=False)
        yield from iterate_total_losses(training, fabric.device)


def cut_like(training: TrainSettings, distillation: TrainSettings) -> TrainSettings:
    """``training`` with batches that are cut as those of the distillation, by the same losses."""
    accumulate = min(distillation.accumulate, training.batch_size)
    cut = {"microbatch": distillation.microbatch, "accumulate": accumulate}
    return training.model_copy(update=cut)


def _from_one(settings: DistillSettings) -> DistillSettings:
    """Reduce settings for several teachers to those for one."""
    losses = {n: loss.model_copy(update={"teacher": None}) for n, loss in settings.losses.items()}
    return settings.model_copy(update={"losses": losses, "teacher_dropping": None})
