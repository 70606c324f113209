"""Parts of a training that several processes share, each with its own loader."""

import copy
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from ssdistill.data.image_set import ImageSet
from ssdistill.data.loader import Loader
from ssdistill.distributed import gather_values, is_shared, rank, world_size
from ssdistill.record.run import Run
from ssdistill.record.tracker import Tracker, TrackingSettings
from ssdistill.train.loop import Training, fit
from ssdistill.train.microbatch import in_microbatches
from ssdistill.train.observers import Observer
from ssdistill.train.unused import may_leave_unused

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@dataclass(frozen=True)
class Order:
    """Which images a loader brings at which step.

    Args:
        batch_size, seed, num_steps, rows, weights, ahead: see :mod:`ssdistill.data.loader`.
    """

    batch_size: int
    seed: int
    num_steps: int
    rows: np.ndarray | None = None
    weights: np.ndarray | None = None
    ahead: int = 1

    def loader(
        self, store: ImageSet, device: torch.device, neighbors: np.ndarray | None = None
    ) -> Loader:
        """Build the loader of this process: of its part of every batch if the work is shared."""
        return Loader(
            store,
            self.batch_size,
            self.seed,
            self.num_steps,
            device,
            world_size=world_size() if is_shared() else 1,
            rank=rank() if is_shared() else 0,
            neighbors=neighbors,
            rows=self.rows,
            weights=self.weights,
            ahead=self.ahead,
        )


def without_loader(training: Training) -> Training:
    """Return a training as it is sent to other processes, which have their own loaders."""
    return replace(training, loader=None, progress=False)  # pyright: ignore[reportArgumentType]


def has_unused(training: Training) -> bool:
    """Return whether a step leaves parameters without a gradient, in any process.

    All processes of the training call this; the training stays as it is.
    """
    if training.strategy == "fsdp" and training.task.teachers:
        # A teacher that is to be sharded may be too large to be tried.
        return any(gather_values(may_leave_unused(training)))
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        task = copy.deepcopy(training.task).to(training.loader.device).train()
        batch = training.batch(0)
        with in_microbatches(task, len(batch.index_B), training.microbatch):
            losses = task(training.views(batch), replace(batch, crops={}))
        torch.as_tensor(sum(losses.values())).backward()
    unused = any(p.requires_grad and p.grad is None for p in task.parameters())
    return any(gather_values(unused))


def fit_unrecorded(
    training: Training,
    fabric: "Fabric",
    tracking: TrackingSettings,
    observers: Sequence[Observer] = (),
) -> None:
    """Train without a record: process 0 keeps the one that counts."""
    quiet = tracking.model_copy(update={"wandb": "disabled", "tensorboard": False})
    with tempfile.TemporaryDirectory(prefix="ssdistill-") as folder:
        run = Run(folder, stage="train", digest="", seed=0)
        fit(training, fabric, Tracker(run, quiet), observers=observers)
