"""Training stages: teacher, control, distilled student, recovery after pruning."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ssdistill.artifacts.artifact import save_encoder
from ssdistill.artifacts.files import description_sha256
from ssdistill.chain.arithmetic import choose_arithmetic, step_ratios
from ssdistill.chain.extending import begin_extended
from ssdistill.chain.observers import Selecting, observers_of
from ssdistill.chain.recorded_outputs import time_without_teachers, use_recorded_outputs
from ssdistill.chain.shared_training import Own, train_together
from ssdistill.chain.stage_files import read_json
from ssdistill.chain.stages import Stage
from ssdistill.chain.tasks import fresh_encoder, task_of
from ssdistill.chain.workspace import MODEL, Workspace
from ssdistill.data.image_set import ImageSet
from ssdistill.data.loader import Loader
from ssdistill.data.mixing import MixSettings
from ssdistill.data.pixel_facts import differences, pixel_facts
from ssdistill.data.recipes import ViewRecipe, is_rgb
from ssdistill.data.recipes_of_images import channels_of
from ssdistill.distill.cache.settings import CacheSettings
from ssdistill.experiment.sections import DistillSettings
from ssdistill.files import write_atomically
from ssdistill.record.tracker import Tracker
from ssdistill.settings.registry import TEACHERS
from ssdistill.teachers import ImageSpec
from ssdistill.train.loop import Training, fit
from ssdistill.train.progress import console
from ssdistill.train.seeding import derive_seed
from ssdistill.train.settings import TrainSettings
from ssdistill.train.task import Task

if TYPE_CHECKING:
    from lightning_fabric import Fabric

NOTICES = "notices.json"
"""What a loaded teacher's reader should know: what was ignored, what its size costs."""
VIEWS = "views.npy"
"""First images of the first batch as the networks saw them: (views, images, H, W, 3) uint8."""
SHOWN_IMAGES = 8
BUDGET = "budget.json"
"""Steps of a training that lasts as long as others."""


def initialize(stage: Stage, workspace: Workspace, tracker: Tracker) -> dict[str, Any]:
    """Save the student at its initial weights."""
    export(fresh_encoder(stage), stage, workspace, tracker)
    return {}


def pretrain(stage: Stage, workspace: Workspace, tracker: Tracker) -> dict[str, Any]:
    """Train an encoder by a self-supervised method; save it with its projector."""
    task, settings = task_of(stage, workspace)
    metrics = train(task, settings, stage, workspace, tracker)
    encoder, projector = task.exported
    encoder.projector = projector
    export(encoder, stage, workspace, tracker)
    return metrics


def load_teacher(stage: Stage, workspace: Workspace, tracker: Tracker) -> dict[str, Any]:
    """Load an external teacher and save it as an encoder of the chain."""
    kind = stage.config["teacher"]["kind"]
    settings = TEACHERS.schema(kind).model_validate(stage.config["teacher"])
    teacher = TEACHERS.build(settings)
    encoder, notices = teacher.load(ImageSpec(**stage.config["pictures"]))
    if trained := teacher.trained_on():
        notices += differences(trained, pixel_facts(workspace.train))
    for notice in notices:
        console.print(f"  {notice}", style="dim")
    write_atomically(tracker.run.folder / NOTICES, json.dumps(notices, indent=1) + "\n")
    export(encoder, stage, workspace, tracker)
    return {}


def distill(stage: Stage, workspace: Workspace, tracker: Tracker) -> dict[str, Any]:
    """Train a student against one or several frozen teachers."""
    task, settings = task_of(stage, workspace)
    metrics = train(task, settings, stage, workspace, tracker)
    export(task.encoder, stage, workspace, tracker, parent=next(iter(stage.parents)))
    return metrics


def train(
    task: Task, settings: TrainSettings, stage: Stage, workspace: Workspace, tracker: Tracker
) -> dict[str, Any]:
    """Run the loop on ``task``; returns its final metrics, steps and seconds (median by steps)."""
    num_steps = budgeted_steps(stage, workspace, tracker.run.folder)
    recorded = isinstance(settings, DistillSettings) and settings.cache is not None
    if recorded:
        time_without_teachers(task)
    begin_extended(stage, tracker.run.folder, VIEWS)
    training, fabric = prepare(task, settings, stage, workspace, num_steps)

    def show(views: list[Tensor]) -> None:
        height, width = (max(view.shape[axis] for view in views) for axis in (2, 3))
        views_VBHWC = np.stack(
            [_first_images(view, height, width, workspace.train) for view in views]
        )
        np.save(tracker.run.folder / VIEWS, views_VBHWC)
        rows = views_VBHWC.transpose(1, 2, 0, 3, 4)
        images, height, count, width, _ = rows.shape
        tracker.log_images(0, {"views": rows.reshape(images * height, count * width, 3)})

    if workspace.processes.size > 1:
        own = Own(training, fabric, tracker, show)
        selecting = Selecting(settings.select, settings.select_every)
        metrics = train_together(own, stage, selecting, workspace, recorded=recorded)
    else:
        found = use_recorded_outputs(training, fabric, workspace) if recorded else {}
        logged, device = tracker.settings, fabric.device
        observers = observers_of(training, settings, logged, stage, workspace, device)
        metrics = found | fit(training, fabric, tracker, show, observers)
    facts = {
        "train/steps": training.loader.num_steps,
        "train/seconds": metrics["time/step_seconds"] * training.loader.num_steps,
        "train/bf16": int(training.precision == "bf16"),
        "train/channels_last": int(training.memory_format == torch.channels_last),
    }
    return metrics | facts | ({"train/fp16": 1} if training.precision == "fp16" else {})


def prepare(
    task: Task,
    settings: TrainSettings,
    stage: Stage,
    workspace: Workspace,
    num_steps: int | None = None,
    order: str = "order",
    *,
    shared_out: bool = True,
) -> tuple[Training, "Fabric"]:
    """Prepare the training of ``task`` by the stage's settings, ``num_steps`` long if set.

    Args:
        order: name of the order of the images: another name, another order.
        shared_out: whether several processes each take a part of every batch.
    """
    device = workspace.experiment.device
    if num_steps is None:
        num_steps = settings.num_steps(len(workspace.train) // settings.batch_size)
    # A recovery trains with the views and the mixing of the distillation.
    config = stage.config if "views" in stage.config else stage.config["distill"]
    mix = config.get("training", {}).get("mix")
    cache = config.get("training", {}).get("cache")
    training = Training(
        task=task,
        loader=Loader(
            workspace.train,
            settings.batch_size,
            derive_seed(stage.seed, order),
            num_steps,
            workspace.device,
            world_size=workspace.processes.size if shared_out else 1,
            neighbors=task.neighbors_NK,
            weights=workspace.train.weights,
            ahead=device.prefetch,
        ),
        recipes=tuple(ViewRecipe.model_validate(recipe) for recipe in config["views"]),
        mix=mix and MixSettings.model_validate(mix),
        optim=settings.optim,
        seed=derive_seed(stage.seed, "views"),
        title=stage.role,
        sync_batchnorm=device.sync_batchnorm,
        checkpoint_seconds=workspace.experiment.checkpoint_seconds,
        keep_checkpoint=workspace.experiment.keep_checkpoints,
        microbatch=settings.microbatch,
        accumulate=settings.accumulate,
        strategy=device.strategy if shared_out else "ddp",
        checkpoint_activations=device.checkpoint_activations,
        passes=cache and CacheSettings.model_validate(cache).views,
    )
    return training, choose_arithmetic(training, device, workspace.root / "machine")


def budgeted_steps(stage: Stage, workspace: Workspace, folder: Path) -> int | None:
    """Steps that take as long as the parents' steps do; None where the config fixes them.

    Seconds measured minutes apart would compare what else the machine did. So a few steps of
    every training are timed in turn, here and now, and only their ratios count. What was found
    is kept in ``folder``: a resumed training must not become another one.
    """
    if "budget" not in stage.config:
        return None
    cache = folder / BUDGET
    if not cache.exists():
        trainings = {
            role: prepare(*task_of(s, workspace), s, workspace)
            for role, s in {**stage.parents, stage.role: stage}.items()
        }
        ratios = step_ratios(trainings, to=stage.role)
        steps = sum(ratios[r] * trainings[r][0].loader.num_steps for r in stage.parents)
        content = {"steps": max(1, round(steps)), f"seconds_per_{stage.role}_step": ratios}
        write_atomically(cache, json.dumps(content, indent=1) + "\n")
    return read_json(cache, lambda content: isinstance(content["steps"], int))["steps"]


def _first_images(view_BCHW: Tensor, height: int, width: int, images: ImageSet) -> np.ndarray:
    """The first images of a view as uint8 (N, height, width, 3), small ones on white.

    Args:
        images: what the view was cut from, which know how their channels are shown.
    """
    shown = view_BCHW[:SHOWN_IMAGES].detach().float().cpu().permute(0, 2, 3, 1)
    if images.images.dtype == np.uint8:
        shown = shown.mul(255).round().clamp(0, 255).to(torch.uint8)
    shown_NHWC = shown.numpy()
    if shown_NHWC.dtype != np.uint8 or not is_rgb(*channels_of(images)):
        shown_NHWC = images.displayed(shown_NHWC)
    below, beside = height - shown_NHWC.shape[1], width - shown_NHWC.shape[2]
    margins = ((0, 0), (0, below), (0, beside), (0, 0))
    return np.pad(shown_NHWC, margins, constant_values=255)


def export(
    encoder: Any,
    stage: Stage,
    workspace: Workspace,
    tracker: Tracker,
    parent: str | None = None,
    **facts: Any,
) -> None:
    """Save the encoder with its lineage; ``parent`` names the stage its weights come from."""
    record = tracker.run.record
    lineage = {
        "stage": stage.digest,
        "seed": stage.seed,
        "parents": record.parents,
        "images": pixel_facts(workspace.train),
    }
    folder = tracker.run.folder / MODEL
    sha256 = save_encoder(encoder, folder, lineage)
    parent_sha256 = record.parents[parent]["sha256"] if parent else None
    facts["description_sha256"] = description_sha256(folder)
    tracker.log_model(stage.role, folder, sha256, parent_sha256, **facts)
