"""The stages that train: teacher, control, distilled student, recovery after pruning."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from ssdistill.chain.arithmetic import choose_arithmetic
from ssdistill.chain.workspace import MODEL, Workspace
from ssdistill.data.loader import Loader
from ssdistill.data.views import ViewRecipe
from ssdistill.distill.distiller import Distiller, shapes
from ssdistill.models.artifacts import save_encoder
from ssdistill.models.backbones import Encoder, EncoderSpec, encoder_from_spec
from ssdistill.record.tracker import Tracker
from ssdistill.registry import LOSSES, METHODS
from ssdistill.settings import Settings
from ssdistill.stages import Stage
from ssdistill.train.loop import Training, fit
from ssdistill.train.seeding import derive_seed, seed_generators
from ssdistill.train.settings import TrainSettings
from ssdistill.train.task import Task

VIEWS = "views.npy"
"""First images of the first batch as the networks saw them: (views, images, H, W, 3) uint8."""
SHOWN_IMAGES = 8


def initialize(stage: Stage, workspace: Workspace, tracker: Tracker) -> dict[str, Any]:
    """The student as it is before any training."""
    export(fresh_encoder(stage), stage, tracker)
    return {}


def pretrain(stage: Stage, workspace: Workspace, tracker: Tracker) -> dict[str, Any]:
    """An encoder trained by a self-supervised method."""
    encoder = fresh_encoder(stage)
    settings = METHODS.schema(stage.config["method"]["kind"]).model_validate(stage.config["method"])
    seed_generators(stage.seed, stage.digest)
    method = METHODS.build(settings, encoder)
    num_steps = _budgeted_steps(stage, workspace)
    metrics = train(method, settings, stage, workspace, tracker, num_steps)
    export(encoder, stage, tracker)
    return metrics


def distill(stage: Stage, workspace: Workspace, tracker: Tracker) -> dict[str, Any]:
    """A student trained against the frozen teacher."""
    student = fresh_encoder(stage)
    teacher = workspace.encoder(stage.parents["teacher"])
    settings = type(workspace.experiment.distill).model_validate(stage.config["training"])
    distiller = build_distiller(student, teacher, settings.losses, stage, workspace)
    metrics = train(distiller, settings, stage, workspace, tracker)
    export(student, stage, tracker, parent="teacher")
    return metrics


def build_distiller(
    student: Encoder,
    teacher: Encoder,
    losses: Mapping[str, Settings],
    stage: Stage,
    workspace: Workspace,
) -> Distiller:
    """Student, teacher and the losses between them, heads freshly initialised."""
    seed_generators(stage.seed, stage.digest)
    facts = shapes(student, teacher, num_samples=len(workspace.train))
    built = {name: LOSSES.build(settings, facts) for name, settings in losses.items()}
    weights = {name: settings.weight for name, settings in losses.items()}
    return Distiller(student, teacher, built, weights)


def train(
    task: Task,
    settings: TrainSettings,
    stage: Stage,
    workspace: Workspace,
    tracker: Tracker,
    num_steps: int | None = None,
) -> dict[str, Any]:
    """Run the loop on ``task``; returns its final metrics, steps and seconds.

    ``train/seconds`` is the median step time by the number of steps: what the training takes on
    this machine undisturbed, which is what budgets are compared by.
    """
    device = workspace.experiment.device
    per_epoch = len(workspace.train) // settings.batch_size
    num_steps = num_steps or settings.num_steps(per_epoch)
    order = derive_seed(stage.seed, "order")
    where = Fabric(accelerator=device.accelerator, devices=1).device
    training = Training(
        task=task,
        loader=Loader(workspace.train, settings.batch_size, order, num_steps, where),
        recipes=tuple(ViewRecipe.model_validate(recipe) for recipe in _view_config(stage)),
        optim=settings.optim,
        seed=derive_seed(stage.seed, "views"),
        title=stage.role,
        checkpoint_seconds=workspace.experiment.checkpoint_seconds,
    )
    fabric = choose_arithmetic(training, device, workspace.root / "machine")

    def show(views: list[Tensor]) -> None:
        pictures = np.stack([_pictures(view) for view in views])
        np.save(tracker.run.folder / VIEWS, pictures)
        rows = pictures.transpose(1, 2, 0, 3, 4)
        images, height, count, width, _ = rows.shape
        tracker.log_images(0, {"views": rows.reshape(images * height, count * width, 3)})

    metrics = fit(training, fabric, tracker, on_first_views=show)
    return metrics | {
        "train/steps": num_steps,
        "train/seconds": metrics["time/step_seconds"] * num_steps,
        "train/bf16": int(training.precision == "bf16"),
        "train/channels_last": int(training.memory_format == torch.channels_last),
    }


def fresh_encoder(stage: Stage) -> Encoder:
    """The stage's encoder at its initial weights.

    These depend on seed and architecture alone: untrained, control and distilled students of one
    seed start from the same weights.
    """
    config = dict(stage.config["encoder"])
    pretrained = config.pop("pretrained")
    spec = EncoderSpec.model_validate(config)
    seed_generators(stage.seed, "encoder", spec.model_dump_json())
    return encoder_from_spec(spec, pretrained=pretrained)


def _budgeted_steps(stage: Stage, workspace: Workspace) -> int | None:
    """Steps that fit in the seconds other stages took; None where the config fixes the steps."""
    budget = stage.config.get("budget")
    if budget is None:
        return None
    measured = {name: p.record(workspace.root).metrics for name, p in stage.parents.items()}
    seconds = measured["distilled"]["train/seconds"]
    if budget == "total":
        seconds += measured["teacher"]["train/seconds"]
    return max(1, round(seconds / measured["control"]["time/step_seconds"]))


def _view_config(stage: Stage) -> list[dict[str, Any]]:
    return stage.config["views"] if "views" in stage.config else stage.config["distill"]["views"]


def _pictures(view_BCHW: Tensor) -> np.ndarray:
    """The first images of a view as uint8 (N, H, W, 3)."""
    shown = view_BCHW[:SHOWN_IMAGES].detach().float().cpu().mul(255).round().clamp(0, 255)
    return shown.permute(0, 2, 3, 1).contiguous().to(torch.uint8).numpy()


def export(
    encoder: Any, stage: Stage, tracker: Tracker, parent: str | None = None, **facts: Any
) -> None:
    """Save the encoder with its lineage; ``parent`` names the stage its weights come from."""
    record = tracker.run.record
    lineage = {"stage": stage.digest, "seed": stage.seed, "parents": record.parents}
    folder = tracker.run.folder / MODEL
    sha256 = save_encoder(encoder, folder, lineage)
    parent_sha256 = record.parents[parent]["sha256"] if parent else None
    tracker.log_model(stage.role, folder, sha256, parent_sha256, **facts)
