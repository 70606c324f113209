"""Watch a training of a sweep, and stop it early where the others did better."""

import math
from collections.abc import Mapping
from typing import Any

from ssdistill.chain.sweep_tpe import WatchedTrial
from ssdistill.data.batch import Batch
from ssdistill.errors import StoppedEarly
from ssdistill.evaluate.held_out import HeldOutProbe
from ssdistill.experiment.sweep import HeldOutSettings, Watched
from ssdistill.train.observers import Observer
from ssdistill.train.selection import Criterion
from ssdistill.train.task import Task

APART = 1000
"""Positions of a trial that are kept for each of the experiment's seeds."""


class HeldOut(Criterion):
    """Accuracy of a linear probe on held-out training labels; it reads training labels.

    Args:
        train: the training images.
        settings: of the split.
    """

    name = "held_out"

    def __init__(self, train: Any, settings: HeldOutSettings):
        split = settings.fraction, settings.images, settings.seed
        self.probe = HeldOutProbe.of(train, *split)

    def measure(self, task: Task) -> float:
        encoder, _ = task.exported
        return self.probe.accuracy(encoder, encoder.spec.image_size)


class SweepWatch(Observer):
    """Report a criterion to a trial at fractions of the training; stop where it says so.

    A point is told apart from others at equal fractions of the training, so that trainings of
    different lengths can be compared. The training itself stays as it is.

    Args:
        watched: the trial and the settings.
        criterion: what is measured.
        num_steps: optimizer steps of the training.
        turn: number of the experiment's seed, from 0.
    """

    name = "sweep"

    def __init__(self, watched: Watched, criterion: Criterion, num_steps: int, turn: int = 0):
        self.settings, self.criterion = watched.stop_early, criterion
        self.trial, self.num_steps, self.turn = WatchedTrial(watched), num_steps, turn
        self.positions = measured_steps(self.settings.every, num_steps)

    def after_step(self, step: int, batch: Batch, task: Task) -> dict[str, float]:
        position = self.positions.get(step + 1)
        if position is None:
            return {}
        value = self.criterion.measure(task)
        self.trial.report(value, self.turn * APART + position)
        fraction = (step + 1) / self.num_steps
        if fraction >= self.settings.after and self.trial.should_stop():
            self._stop(f"{self.settings.by} {value:.4g} after {fraction:.0%} of the training")
        return {}

    def _stop(self, reason: str) -> None:
        self.stop = StoppedEarly(reason)

    def state_dict(self) -> dict[str, Any]:
        return {"stopped": str(self.stop) if self.stop else ""}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        # Killed between the last checkpoint and the record of why.
        if state["stopped"]:
            self._stop(state["stopped"])


def measured_steps(every: float, num_steps: int) -> dict[int, int]:
    """Steps done at which to measure, with the position of each; the end is not among them."""
    count = min(APART, round(1 / every))
    positions: dict[int, int] = {}
    for k in range(1, count + 1):
        done = math.ceil(k * every * num_steps - 1e-9)
        if done < num_steps:
            positions.setdefault(done, k)
    return positions
