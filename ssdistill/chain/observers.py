"""Observers of a training stage: checkpoint selection, label-free metrics, online probe."""

from typing import NamedTuple, Protocol

import torch

from ssdistill.chain.stages import Stage
from ssdistill.chain.sweep_watch import HeldOut, SweepWatch
from ssdistill.chain.workspace import Workspace
from ssdistill.data.recipes import RECIPES
from ssdistill.data.recipes_of_images import suited
from ssdistill.distributed import rank
from ssdistill.evaluate.labels import has_several
from ssdistill.evaluate.probes.online_probe import OnlineProbe
from ssdistill.record.tracker import TrackingSettings
from ssdistill.train.loop import Training
from ssdistill.train.observers import Observer
from ssdistill.train.progress import console
from ssdistill.train.seeding import derive_seed
from ssdistill.train.selection import (
    Agreement,
    Criterion,
    EffectiveRank,
    Lidar,
    Selection,
)
from ssdistill.train.watch import AgreementWatch


class Selecting(NamedTuple):
    """By what weights are selected, and how often; see ``TrainSettings``."""

    select: str
    select_every: float


class _Selects(Protocol):
    @property
    def select(self) -> str: ...
    @property
    def select_every(self) -> float: ...


def observers_of(
    training: Training,
    settings: _Selects,
    tracking: TrackingSettings,
    stage: Stage,
    workspace: Workspace,
    device: torch.device,
) -> list[Observer]:
    """Build the observers set by a stage's training and tracking settings.

    Of several processes that share a training, all measure without labels; process 0 alone has
    the labels.
    """
    observers: list[Observer] = []
    num_steps = training.loader.num_steps
    if settings.select != "last":
        criterion = _criterion(settings.select, stage, workspace)
        observers.append(Selection(criterion, num_steps, settings.select_every))
    # It encodes by teachers in process 0, which has a part of a sharded one.
    whole = training.strategy == "ddp"
    if tracking.agreement and whole and getattr(training.task, "teachers", None):
        seed, batch_size = derive_seed(stage.seed, "watch"), training.loader.batch_size
        observers.append(AgreementWatch(workspace.train, num_steps, batch_size, seed))
    if (watched := workspace.experiment.watched) and watched.role == stage.role:
        by, seeds = watched.stop_early.by, workspace.experiment.seeds
        held_out = HeldOut(workspace.train, watched.held_out) if by == "held_out" else None
        criterion = held_out or _criterion(by, stage, workspace)
        turn = seeds.index(stage.seed) if stage.seed in seeds else 0
        observers.append(SweepWatch(watched, criterion, num_steps, turn))
    if tracking.online_probe and rank() == 0:
        if not workspace.source.has_labels:
            console.print("  no online probe: the data has no labels", style="dim")
        elif workspace.experiment.evaluate is None:
            console.print("  no online probe: evaluate=null forbids reading labels", style="dim")
        elif has_several(workspace.train):
            console.print("  no online probe: it requires one label per image", style="dim")
        else:
            embed_dim = training.task.encoder.embed_dim
            observers.append(OnlineProbe(workspace.train, embed_dim, device))
    return observers


def _criterion(select: str, stage: Stage, workspace: Workspace) -> Criterion:
    """What a config's ``select`` stands for."""
    images_and_seed = workspace.train, derive_seed(stage.seed, "select")
    if select == "lidar":
        # The views that the finished encoder will be looked at with.
        recipe = suited(RECIPES[workspace.source.default_recipe or "strong"], workspace.train)
        return Lidar(*images_and_seed, recipe)
    return {"rankme": EffectiveRank, "agreement": Agreement}[select](*images_and_seed)
