"""Where a training is: what a checkpoint holds besides the configuration."""

import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch

from ssdistill.distributed import gather_values, rank
from ssdistill.errors import UserError
from ssdistill.train.checkpoint import ANEW, load_checkpoint, save_checkpoint
from ssdistill.train.loss_scale import LossScale
from ssdistill.train.observers import Observer
from ssdistill.train.seeding import random_state, restore_random_state
from ssdistill.train.task import Task


class State:
    """Contents of a checkpoint besides the configuration, and when it was last written.

    Args:
        path: of the checkpoint; where there is one, everything is restored from it.
        task, optimizer, observers, scale: what it holds the state of.

    Attributes:
        step: the next one.
        durations: seconds that each step so far took.
        metrics: the last logged ones.

    Raises:
        UserError: a checkpoint that cannot be read, or is of another network.
    """

    def __init__(
        self,
        path: Path,
        task: Task,
        optimizer: torch.optim.Optimizer,
        observers: Sequence[Observer],
        scale: LossScale | None = None,
    ):
        self.path, self.task, self.optimizer, self.observers = path, task, optimizer, observers
        self.scale = scale
        self.step, self.durations, self.metrics = 0, [], {}
        self._saved = time.monotonic()
        if checkpoint := load_checkpoint(path):
            try:
                random, self.step = checkpoint["random"], checkpoint["step"]
                # A process that was not there before starts like the first one.
                if rank() < len(others := checkpoint.get("random_of_processes", ())):
                    random = others[rank()]
                self.durations, self.metrics = checkpoint["durations"], checkpoint["metrics"]
                task.load_state_dict(checkpoint["task"])
                optimizer.load_state_dict(checkpoint["optimizer"])
                if scale is not None:
                    scale.load_state_dict(checkpoint.get("loss_scale", {}))
                for observer in observers:
                    if (
                        observer_state := checkpoint.get("observers", {}).get(observer.name)
                    ) is not None:
                        observer.load_state_dict(observer_state)
                restore_random_state(random)
            except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
                reason = " ".join(str(error).split())[:200]
                raise UserError(f"{path}: does not fit this network ({reason}); {ANEW}") from error

    def advance(self, seconds: float) -> None:
        """Note that a step has been taken, and how long it took."""
        self.step += 1
        self.durations.append(seconds)

    @property
    def age(self) -> float:
        """Return seconds since the last checkpoint."""
        return time.monotonic() - self._saved

    def step_seconds(self, last: int = 0) -> float:
        """Return the median seconds per step, without the first (warm-up) if there are more."""
        return median(self.durations[1:][-last:] or self.durations)

    def save(self) -> None:
        """Write the checkpoint; all processes call it, and process 0 writes."""
        randoms = gather_values(random_state())
        if rank() > 0:
            self._saved = time.monotonic()
            return
        state = {
            "task": self.task.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "observers": {observer.name: observer.state_dict() for observer in self.observers},
            "random": randoms[0],
            "step": self.step,
            "durations": self.durations,
            "metrics": self.metrics,
        }
        if self.scale is not None and (scaled := self.scale.state_dict()):
            state["loss_scale"] = scaled
        if len(randoms) > 1:
            state["random_of_processes"] = randoms
        save_checkpoint(self.path, state)
        self._saved = time.monotonic()

    def keep(self, path: Path) -> None:
        """Copy the checkpoint that was saved last; process 0 does."""
        if rank() == 0:
            partial = path.with_name(f"{path.name}.partial")
            shutil.copyfile(self.path, partial)
            os.replace(partial, path)
