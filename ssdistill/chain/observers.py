"""Who looks on while a stage trains."""

import torch

from ssdistill.chain.workspace import Workspace
from ssdistill.evaluate.online_probe import OnlineProbe
from ssdistill.evaluate.selection import RankMeSelection
from ssdistill.record.tracker import TrackingSettings
from ssdistill.stages import Stage
from ssdistill.train.loop import Training
from ssdistill.train.observers import Observer
from ssdistill.train.progress import console
from ssdistill.train.seeding import derive_seed
from ssdistill.train.settings import TrainSettings


def observers_of(
    training: Training,
    settings: TrainSettings,
    tracking: TrackingSettings,
    stage: Stage,
    workspace: Workspace,
    device: torch.device,
) -> list[Observer]:
    """The observers that the settings of a stage's training, and of its tracking, ask for."""
    observers: list[Observer] = []
    if settings.select == "rankme":
        seed, num_steps = derive_seed(stage.seed, "select"), training.loader.num_steps
        observers.append(RankMeSelection(workspace.train, num_steps, settings.select_every, seed))
    if tracking.online_probe:
        if not workspace.source.has_labels:
            console.print("  no online probe: the data has no labels", style="dim")
        elif workspace.experiment.evaluate is None:
            console.print("  no online probe: evaluate=null leaves labels alone", style="dim")
        else:
            embed_dim = training.task.encoder.embed_dim
            observers.append(OnlineProbe(workspace.train, embed_dim, device))
    return observers
