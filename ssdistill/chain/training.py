"""The stages that train: teacher, control, distilled student, recovery after pruning."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor

from ssdistill.chain.arithmetic import choose_arithmetic, step_ratios
from ssdistill.chain.workspace import MODEL, Workspace
from ssdistill.data.extra import NEEDS_NEIGHBOURS
from ssdistill.data.loader import Loader
from ssdistill.data.mixing import MixSettings
from ssdistill.data.recipes import ViewRecipe
from ssdistill.distill.distiller import Distiller, shapes
from ssdistill.distill.neighbours import nearest_neighbours
from ssdistill.experiment import DistillSettings
from ssdistill.files import write_atomically
from ssdistill.models.artifacts import save_encoder
from ssdistill.models.backbones import Encoder, EncoderSpec, encoder_from_spec
from ssdistill.models.representation import Representation
from ssdistill.record.tracker import Tracker
from ssdistill.registry import LOSSES, METHODS
from ssdistill.stages import Stage
from ssdistill.train.loop import Training, fit
from ssdistill.train.seeding import derive_seed, seed_generators
from ssdistill.train.settings import TrainSettings
from ssdistill.train.task import Task

VIEWS = "views.npy"
"""First images of the first batch as the networks saw them: (views, images, H, W, 3) uint8."""
SHOWN_IMAGES = 8
BUDGET = "budget.json"
"""Steps of a training that lasts as long as others."""


def initialize(stage: Stage, workspace: Workspace, tracker: Tracker) -> dict[str, Any]:
    """The student as it is before any training."""
    export(fresh_encoder(stage), stage, tracker)
    return {}


def pretrain(stage: Stage, workspace: Workspace, tracker: Tracker) -> dict[str, Any]:
    """An encoder trained by a self-supervised method, and the projector it was trained with."""
    task, settings = task_of(stage, workspace)
    metrics = train(task, settings, stage, workspace, tracker)
    task.encoder.projector = task.projector
    export(task.encoder, stage, tracker)
    return metrics


def distill(stage: Stage, workspace: Workspace, tracker: Tracker) -> dict[str, Any]:
    """A student trained against the frozen teacher."""
    task, settings = task_of(stage, workspace)
    metrics = train(task, settings, stage, workspace, tracker)
    export(task.encoder, stage, tracker, parent="teacher")
    return metrics


def task_of(stage: Stage, workspace: Workspace) -> tuple[Task, TrainSettings]:
    """What a pretraining or distillation stage trains, at its initial weights, and how."""
    encoder = fresh_encoder(stage)
    if stage.kind == "distill":
        teacher = workspace.encoder(stage.parents["teacher"])
        settings = DistillSettings.model_validate(stage.config["training"])
        return build_distiller(encoder, teacher, settings, stage, workspace), settings
    settings = METHODS.schema(stage.config["method"]["kind"]).model_validate(stage.config["method"])
    seed_generators(stage.seed, stage.digest)
    return METHODS.build(settings, encoder), settings


def build_distiller(
    student: Encoder,
    teacher: Encoder,
    settings: DistillSettings,
    stage: Stage,
    workspace: Workspace,
) -> Distiller:
    """Student, teacher and the losses between them, heads freshly initialised."""
    seed_generators(stage.seed, stage.digest)
    facts = shapes(student, teacher, num_samples=len(workspace.train))
    losses = {name: LOSSES.build(loss, facts) for name, loss in settings.losses.items()}
    distiller = Distiller(student, teacher, losses, settings.losses, settings.interpolate)
    _look_at_teacher(distiller, workspace)
    return distiller


def _look_at_teacher(distiller: Distiller, workspace: Workspace) -> None:
    """Give the losses what they need of the teacher's embeddings of the training images."""
    fitted = [loss for loss in distiller.losses.values() if loss.fits_teacher]
    wants_neighbours = NEEDS_NEIGHBOURS & set(distiller.extra_views)
    if not fitted and not wants_neighbours:
        return
    embedding_ND = workspace.embeddings(distiller.teacher)
    projector, projection_NP = distiller.teacher.projector, None
    where = Fabric(accelerator=workspace.experiment.device.accelerator, devices=1).device
    if projector is not None:
        with torch.no_grad():
            projection_NP = projector(embedding_ND).to(where)
    embedding_ND = embedding_ND.to(where)
    if wants_neighbours:
        distiller.neighbours_NK = nearest_neighbours(embedding_ND)
    for loss in fitted:
        loss.fit_teacher(Representation(embedding_ND, projection_NP))


def train(
    task: Task, settings: TrainSettings, stage: Stage, workspace: Workspace, tracker: Tracker
) -> dict[str, Any]:
    """Run the loop on ``task``; returns its final metrics, steps and seconds (median by steps)."""
    num_steps = budgeted_steps(stage, workspace, tracker.run.folder)
    training, fabric = prepare(task, settings, stage, workspace, num_steps)

    def show(views: list[Tensor]) -> None:
        side = max(view.shape[-1] for view in views)
        pictures = np.stack([_pictures(view, side) for view in views])
        np.save(tracker.run.folder / VIEWS, pictures)
        rows = pictures.transpose(1, 2, 0, 3, 4)
        images, height, count, width, _ = rows.shape
        tracker.log_images(0, {"views": rows.reshape(images * height, count * width, 3)})

    metrics = fit(training, fabric, tracker, on_first_views=show)
    return metrics | {
        "train/steps": training.loader.num_steps,
        "train/seconds": metrics["time/step_seconds"] * training.loader.num_steps,
        "train/bf16": int(training.precision == "bf16"),
        "train/channels_last": int(training.memory_format == torch.channels_last),
    }


def prepare(
    task: Task,
    settings: TrainSettings,
    stage: Stage,
    workspace: Workspace,
    num_steps: int | None = None,
) -> tuple[Training, Fabric]:
    """The training of ``task`` as the stage wants it, ``num_steps`` long if given."""
    device = workspace.experiment.device
    if num_steps is None:
        num_steps = settings.num_steps(len(workspace.train) // settings.batch_size)
    order = derive_seed(stage.seed, "order")
    where = Fabric(accelerator=device.accelerator, devices=1).device
    # A recovery trains with the views and the mixing of the distillation.
    config = stage.config if "views" in stage.config else stage.config["distill"]
    mix = config.get("training", {}).get("mix")
    training = Training(
        task=task,
        loader=Loader(
            workspace.train,
            settings.batch_size,
            order,
            num_steps,
            where,
            neighbours=task.neighbours_NK,
        ),
        recipes=tuple(ViewRecipe.model_validate(recipe) for recipe in config["views"]),
        mix=mix and MixSettings.model_validate(mix),
        optim=settings.optim,
        seed=derive_seed(stage.seed, "views"),
        title=stage.role,
        checkpoint_seconds=workspace.experiment.checkpoint_seconds,
    )
    return training, choose_arithmetic(training, device, workspace.root / "machine")


def budgeted_steps(stage: Stage, workspace: Workspace, folder: Path) -> int | None:
    """Steps that take as long as other stages' steps do; None where the config fixes them.

    Seconds measured minutes apart would compare what else the machine did. So a few steps of
    every training are timed in turn, here and now, and only their ratios count. What was found
    is kept in ``folder``: a resumed training must not become another one.
    """
    budget = stage.config.get("budget")
    if budget is None:
        return None
    found = folder / BUDGET
    if not found.exists():
        counted = ["distilled", "teacher"] if budget == "total" else ["distilled"]
        stages = {role: stage.parents[role] for role in ["control", *counted]}
        trainings = {
            role: prepare(*task_of(s, workspace), s, workspace) for role, s in stages.items()
        }
        ratios = step_ratios(trainings, to="control")
        steps = sum(ratios[role] * trainings[role][0].loader.num_steps for role in counted)
        content = {"steps": max(1, round(steps)), "seconds_per_control_step": ratios}
        write_atomically(found, json.dumps(content, indent=1) + "\n")
    return json.loads(found.read_text())["steps"]


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


def _pictures(view_BCHW: Tensor, side: int) -> np.ndarray:
    """The first images of a view as uint8 (N, side, side, 3), small ones on white."""
    shown = view_BCHW[:SHOWN_IMAGES].detach().float().cpu().mul(255).round().clamp(0, 255)
    margin = side - shown.shape[-1]
    shown = F.pad(shown, (0, margin, 0, margin), value=255)
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
