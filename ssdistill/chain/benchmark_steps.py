"""Programs that a benchmark runs in turns: a whole training, its parts, the networks alone."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ssdistill.data.batch import Batch
from ssdistill.data.view_size import size_of
from ssdistill.distill.distiller import Distiller
from ssdistill.measure.timing import RATE
from ssdistill.record.run import Run
from ssdistill.record.tracker import Tracker, TrackingSettings
from ssdistill.train.loop import Training, fit
from ssdistill.train.microbatch import in_microbatches
from ssdistill.train.observers import Observer
from ssdistill.train.optim import build_optimizer
from ssdistill.train.passes import Passes
from ssdistill.train.task import Task

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Turn = Callable[[], dict[str, float]]
LOADER, VIEWS, TEACHER = "loader", "views", "teacher"
NETWORKS, OPTIMIZER = "forward, backward", "optimizer"


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class _Clock(Observer):
    """Seconds between the ends of two steps of a training."""

    name = "clock"

    def __init__(self, device: torch.device, first: int, last: int):
        self.device, self.first, self.last = device, first, last
        self.marks: list[float] = []

    def after_step(self, step: int, batch: Batch, task: Task) -> Mapping[str, Tensor | float]:
        if step in (self.first, self.last):
            wait_for(self.device)
            self.marks.append(time.perf_counter())
        return {}

    @property
    def seconds(self) -> float:
        return self.marks[1] - self.marks[0]


def whole(training: Training, fabric: "Fabric", folder: Path, steps: int) -> Turn:
    """Train as a stage does, with its record, for ``steps`` steps after two that are not timed.

    Args:
        folder: for the records.
    """
    numbers = count()

    def turn() -> dict[str, float]:
        run = Run(folder / str(next(numbers)), stage="benchmark", digest="benchmark", seed=0)
        clock = _Clock(fabric.device, 1, 1 + steps)
        training.loader.num_steps = steps + 2
        fit(training, fabric, Tracker(run, TrackingSettings(wandb="disabled")), observers=[clock])
        return {RATE: training.loader.batch_size * steps / clock.seconds}

    return turn


class _Ready:
    """The task, its optimizer and one batch of views on the device."""

    def __init__(self, training: Training, fabric: "Fabric"):
        self.training, self.fabric, self.task = training, fabric, training.task
        # torch takes a memory format beside the device, which its overloads leave out.
        self.task.to(fabric.device, memory_format=training.memory_format).train()  # pyright: ignore[reportCallIssue]
        model, self.optimizer = fabric.setup(self.task, build_optimizer(self.task, training.optim))
        self.passes = Passes(training, model, fabric)
        # Warm-ups begin at zero, and what weighs nothing would cost nothing.
        self.weights = dict.fromkeys(self.task.weights_at(0, 1), 1.0)
        batch = training.batch(0)
        self.views, self.batch = training.views(batch), replace(batch, crops={})

    def run_networks(self, views: list[Tensor], batch: Batch) -> None:
        self.passes(views, batch, self.weights)

    def update(self, batch: Batch) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.task.after_step(batch.step, self.training.loader.num_steps)


def alone(training: Training, fabric: "Fabric", steps: int) -> Turn:
    """Forward, backward and optimizer step on views that are made once."""
    ready: list[_Ready] = []

    def turn() -> dict[str, float]:
        ready[:] = ready or [_Ready(training, fabric)]
        (own,) = ready
        own.task.train()
        for number in range(steps + 1):
            if number == 1:
                wait_for(fabric.device)
                began = time.perf_counter()
            own.run_networks(own.views, own.batch)
            own.update(own.batch)
        wait_for(fabric.device)
        return {RATE: training.loader.batch_size * steps / (time.perf_counter() - began)}

    return turn


def parts(training: Training, fabric: "Fabric", steps: int) -> Turn:
    """Seconds of each part of a step, one after another: in a training some of them overlap.

    The teachers of a distillation are a part of their own, unless gradients are accumulated.
    """
    ready: list[_Ready] = []
    numbers = count()

    def turn() -> dict[str, float]:
        ready[:] = ready or [_Ready(training, fabric)]
        (own,) = ready
        own.task.train()
        found: dict[str, list[float]] = {}
        for number in range(steps + 1):
            seconds = _seconds_of_parts(own, next(numbers))
            for name, value in seconds.items() if number else ():
                found.setdefault(name, []).append(value)
        return {name: statistics.median(values) for name, values in found.items()}

    return turn


def _seconds_of_parts(own: _Ready, number: int) -> dict[str, float]:
    """Take one step; return the seconds of its parts."""
    seconds: dict[str, float] = {}
    training, fabric = own.training, own.fabric

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        wait_for(fabric.device)
        seconds[name] = time.perf_counter() - began

    wait_for(fabric.device)
    with timed(LOADER):
        batch = training.loader.batch(number, training.plan)
    with timed(VIEWS):
        views = training.views(batch)
    batch = replace(batch, crops={})
    task = training.task
    if isinstance(task, Distiller) and task.source is None and training.accumulate == 1:
        with timed(TEACHER):
            outputs = _teacher_outputs(task, views, batch, training, fabric)
        task.source = lambda teacher, live, batch: outputs[teacher]
        try:
            with timed(NETWORKS):
                own.run_networks(views, batch)
        finally:
            task.source = None
    else:
        with timed(NETWORKS):
            own.run_networks(views, batch)
    with timed(OPTIMIZER):
        own.update(batch)
    return seconds


def _teacher_outputs(
    task: Distiller, views: list[Tensor], batch: Batch, training: Training, fabric: "Fabric"
) -> dict[str, Any]:
    """Encode the views that each teacher is to encode."""
    num_plain = len(views) - len(task.extra_views)
    by_name: dict[int | str, Tensor] = dict(enumerate(views[:num_plain]))
    by_name |= zip(task.extra_views, views[num_plain:], strict=True)
    sizes = [size_of(view) for view in views[:num_plain]]
    with fabric.autocast(), in_microbatches(task, len(batch.index_B), training.microbatch):
        return {
            name: task.targets(
                {view: by_name[view] for view in task.teacher_views(name, sizes)}, batch, name
            )
            for name in task.teachers
        }
