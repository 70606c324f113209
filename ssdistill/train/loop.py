"""The training loop, shared by pretraining, distillation, recovery and SGD probes."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from ssdistill.data.batch import Batch
from ssdistill.data.loader import Loader
from ssdistill.data.mixing import MixSettings
from ssdistill.data.recipes import ViewRecipe
from ssdistill.data.view_plan import ViewPlan
from ssdistill.distributed import (
    all_gather_rows,
    broadcast,
    largest,
    mean_values,
    world_size,
)
from ssdistill.label_free.collapse import collapse_metrics
from ssdistill.record.tracker import Tracker
from ssdistill.settings import Size
from ssdistill.train.activations import recomputed
from ssdistill.train.batch_statistics import synchronized
from ssdistill.train.gradients import SharedLayer
from ssdistill.train.guard import Guard
from ssdistill.train.interrupt import Interruptible
from ssdistill.train.loss_scale import LossScale
from ssdistill.train.observers import Observer
from ssdistill.train.optim import OptimSettings, build_optimizer, set_rates
from ssdistill.train.passes import Passes
from ssdistill.train.progress import TrainingProgress
from ssdistill.train.sharding import shard_teachers
from ssdistill.train.state import State
from ssdistill.train.task import Task
from ssdistill.train.waiting import Waiting

if TYPE_CHECKING:
    from lightning_fabric import Fabric

CHECKPOINT, LAST_CHECKPOINT = "checkpoint.pt", "last_checkpoint.pt"
"""Of a training in progress; of a finished one, where it is kept."""
STOP = 2
"""Wish of a process to end the training after a checkpoint; 1 is the wish for a checkpoint."""


@dataclass
class Training:
    """One training run, ready to start.

    Args:
        task: what is trained.
        loader: batches of unlabeled images, by step.
        recipes: one view recipe per view.
        optim: optimizer settings.
        seed: seed of the views.
        title: what the progress bar calls it.
        mix: MixUp or CutMix of the views; None for none.
        checkpoint_seconds: at most this much work is lost to a kill.
        keep_checkpoint: whether the state after the last step is kept, for a longer training.
        precision: number format of the networks, ``fp32``, or ``bf16`` or ``fp16`` (autocast).
        memory_format: layout of images and weights.
        image_size: of the views in pixels; None is what the task's encoder takes.
        sync_batchnorm: whether several processes normalize by the statistics of the whole batch.
        microbatch: images that an encoder encodes at a time; None for the whole batch.
        accumulate: parts of a batch whose gradients are added up for one step.
        strategy: of several processes: ``fsdp`` shares out the teachers' weights among them.
        checkpoint_activations: whether the encoder's are computed again in the backward pass.
        progress: a bar on the terminal.
        passes: passes over the images after which their views repeat; None for never.
    """

    task: Task
    loader: Loader
    recipes: tuple[ViewRecipe, ...]
    optim: OptimSettings
    seed: int
    title: str = "training"
    mix: MixSettings | None = None
    checkpoint_seconds: float = 20.0
    keep_checkpoint: bool = False
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    memory_format: torch.memory_format = torch.contiguous_format
    image_size: Size | None = None
    sync_batchnorm: bool = True
    microbatch: int | None = None
    accumulate: int = 1
    strategy: Literal["ddp", "fsdp"] = "ddp"
    checkpoint_activations: bool = False
    progress: bool = True
    passes: int | None = None

    @property
    def plan(self) -> ViewPlan:
        """The views of every step."""
        size = self.image_size or self.task.encoder.spec.image_size
        extra = tuple(self.task.extra_views)
        return ViewPlan(self.recipes, self.seed, size, extra, self.mix, self.passes)

    def batch(self, step: int) -> Batch:
        """Return the batch of one step."""
        return self.loader.batch(step, self.plan)

    def batches(self, start_step: int = 0) -> Iterator[Batch]:
        """Yield batches from ``start_step`` to the end."""
        return self.loader.iterate(start_step, self.plan)

    def views(self, batch: Batch) -> list[Tensor]:
        """Each recipe's view of the batch, (B, C, h, w) in [0, 1], then the extra ones."""
        views = self.plan.views(batch)
        return [view.contiguous(memory_format=self.memory_format) for view in views]


def fit(
    training: Training,
    fabric: "Fabric",
    tracker: Tracker,
    on_first_views: Callable[[list[Tensor]], None] = lambda views: None,
    observers: Sequence[Observer] = (),
) -> dict[str, float]:
    """Train, resuming from the checkpoint in the run's folder if there is one.

    Returns:
        the last logged values, ``time/step_seconds`` as the median over all steps, and what
        the observers say at the end.

    Raises:
        UserError: when a loss is not finite or the embedding has collapsed.
        KeyboardInterrupt: after Ctrl-C, once a checkpoint is written.
    """
    task, loader = training.task, training.loader
    # Several processes have one checkpoint, that of process 0.
    checkpoint = Path(broadcast(str(tracker.run.folder / CHECKPOINT)))
    if training.strategy == "fsdp" and world_size() > 1:
        shard_teachers(task, fabric.device, training.precision)
    # torch takes a memory format beside the device, which its overloads leave out.
    task.to(fabric.device, memory_format=training.memory_format).train()  # pyright: ignore[reportCallIssue]
    optimizer = build_optimizer(task, training.optim)
    scale = LossScale(fabric, training.title if training.progress else "")
    state = State(checkpoint, task, optimizer, observers, scale)
    tracker.run.rewind(state.step)
    update = _Update(training, fabric, optimizer, scale)
    guard, num_steps = Guard(), loader.num_steps

    with (
        TrainingProgress(
            training.title, state.step, num_steps, loader.batch_size, shown=training.progress
        ) as progress,
        Interruptible() as interrupt,
        synchronized(task) if training.sync_batchnorm else nullcontext(),
        recomputed(task.encoder, training.checkpoint_activations),
    ):
        waiting = Waiting(training.title, loader.remedy if training.progress else "")
        began = time.perf_counter()
        for batch in waiting.over(training.batches(state.step)):
            step = batch.step
            views = training.views(batch)
            if step == 0:
                on_first_views(views)
            logged = tracker.due(step) or step == num_steps - 1
            compare = tracker.gradients_due(step)
            values = update(views, batch, logged, compare)
            state.advance(seconds := time.perf_counter() - began)
            waiting.step(seconds)
            observed: dict[str, Tensor | float] = {}
            for observer in observers:
                observed |= observer.after_step(step, batch, task)
            began = time.perf_counter()
            if logged:
                metrics = mean_values(values, fabric.device)
                # Not of every process: observers may be in the first one alone.
                metrics |= {n: float(torch.as_tensor(x).detach()) for n, x in observed.items()}
                last_embeddings = [all_gather_rows(z.float()) for z in task.last_embeddings[:2]]
                # A single image has no spread, and cannot have collapsed.
                last_embeddings = [z for z in last_embeddings if len(z) > 1]
                metrics |= collapse_metrics(*last_embeddings) if last_embeddings else {}
                metrics["time/images_per_s"] = loader.batch_size / state.step_seconds(last=50)
                metrics["time/waiting"] = waiting.share
                state.metrics = metrics
                guard.check(metrics, last_embeddings[0] if last_embeddings else None, step)
                tracker.log(step, metrics, batch.epoch)
                progress.show(step + 1, metrics["loss/total"])
            stops = [observer.stop for observer in observers if observer.stop]
            wish = STOP if interrupt.requested or stops else 0
            wish = wish or int(state.age > training.checkpoint_seconds)
            # All processes save at the same step, whichever of them wants to.
            if wish := largest(wish):
                state.save()
                if wish == STOP:
                    raise KeyboardInterrupt if interrupt.requested or not stops else stops[0]
    scale.require_a_step(num_steps)
    if training.keep_checkpoint:
        state.save()
        state.keep(checkpoint.with_name(LAST_CHECKPOINT))
    metrics = {**state.metrics, "time/step_seconds": state.step_seconds()}
    for observer in observers:
        metrics |= observer.after_training(task)
    return metrics


class _Update:
    """Take optimizer steps."""

    def __init__(
        self,
        training: Training,
        fabric: "Fabric",
        optimizer: torch.optim.Optimizer,
        scale: LossScale,
    ):
        self.scale = scale
        self.task, self.optim = training.task, training.optim
        self.num_steps = training.loader.num_steps
        self.shared = SharedLayer(training.task.encoder)
        model, self.optimizer = fabric.setup(training.task, optimizer)
        self.passes = Passes(training, model, fabric)

    def __call__(
        self, views: list[Tensor], batch: Batch, measure: bool, compare: bool
    ) -> dict[str, Tensor | float]:
        """Take one step; return the values that may be logged, still on the device.

        Args:
            measure: give the gradient's norm even where nothing is clipped.
            compare: measure the gradient of each loss, too.
        """
        lr = set_rates(self.optimizer, self.optim, batch.step, self.num_steps)
        # The views are made; a compiled or wrapped task has no use for what they were made of.
        batch = replace(batch, crops={})
        weights = self.task.weights_at(batch.step, self.num_steps)
        losses, pulls = self.passes(views, batch, weights, self.shared if compare else None)
        weighted = {name: weights[name] * loss for name, loss in losses.items()}
        total = torch.as_tensor(sum(weighted.values()))
        self.scale.unscale(self.optimizer)
        grad_norm = _clip(self.task, self.optim.clip_grad_norm, measure)
        taken = self.scale.step(self.optimizer, batch.step)
        self.optimizer.zero_grad()
        if taken:  # momentum networks stay where they are with the weights
            self.task.after_step(batch.step, self.num_steps)
        values = {"loss/total": total, "optim/lr": lr, "grad/norm": grad_norm}
        values |= self.scale.metrics if measure else {}
        values |= {f"loss/{name}": loss for name, loss in losses.items()}
        values |= {f"weighted/{name}": loss for name, loss in weighted.items()}
        return values | {f"grad/{name}": norm for name, norm in pulls.items()}


def _clip(task: Task, limit: float | None, measure: bool) -> Tensor | float:
    """Clip gradients to ``limit``; return the global norm if it is clipped or logged, else NaN."""
    if limit is None and not measure:
        return float("nan")
    gradients = [p.grad for p in task.parameters() if p.grad is not None]
    if limit is None:
        return torch.nn.utils.get_total_norm(gradients)
    return torch.nn.utils.clip_grad_norm_(task.parameters(), limit)
