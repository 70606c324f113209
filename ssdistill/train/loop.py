"""The training loop: the same page for pretraining, distillation and recovery."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from lightning_fabric import Fabric
from torch import Tensor

from ssdistill.data.batch import Batch
from ssdistill.data.extra import extra_views
from ssdistill.data.loader import Loader
from ssdistill.data.mixing import MixSettings, mix_views
from ssdistill.data.recipes import ViewRecipe
from ssdistill.data.views import make_view
from ssdistill.errors import UserError
from ssdistill.evaluate.collapse import gauges, is_collapsed
from ssdistill.record.tracker import Tracker
from ssdistill.train.checkpoint import load_checkpoint, save_checkpoint
from ssdistill.train.gradients import SharedLayer
from ssdistill.train.interrupt import Interruptible
from ssdistill.train.optim import OptimSettings, build_optimizer, learning_rate
from ssdistill.train.progress import TrainingProgress
from ssdistill.train.seeding import random_state, restore_random_state
from ssdistill.train.task import Task

COLLAPSE_PATIENCE = 20
"""Gauges in a row that must say "collapsed" before a training is stopped."""
CHECKPOINT = "checkpoint.pt"


@dataclass
class Training:
    """One training, ready to go.

    Args:
        task: what is trained.
        loader: batches of unlabeled images, by step.
        recipes: one view recipe per view.
        optim: optimizer settings.
        seed: seed of the views.
        title: what the progress bar calls it.
        mix: MixUp or CutMix of the views; None for none.
        checkpoint_seconds: at most this much work is lost to a kill.
        precision: number format of the networks, ``fp32`` or ``bf16`` (autocast).
        memory_format: layout of images and weights.
    """

    task: Task
    loader: Loader
    recipes: tuple[ViewRecipe, ...]
    optim: OptimSettings
    seed: int
    title: str = "training"
    mix: MixSettings | None = None
    checkpoint_seconds: float = 20.0
    precision: str = "fp32"
    memory_format: torch.memory_format = torch.contiguous_format

    def views(self, batch: Batch) -> list[Tensor]:
        """Each recipe's view of the batch, (B, 3, side, side) in [0, 1], then the extra ones."""
        size, source = self.task.encoder.spec.image_size, batch.images_BHWC
        key = {"seed": self.seed, "epoch": batch.epoch, "index_B": batch.index_B}
        views = [
            make_view(source, recipe, view=number, size=recipe.size or size, **key)
            for number, recipe in enumerate(self.recipes)
        ]
        if self.mix:
            views = mix_views(views, self.mix, seed=self.seed, step=batch.step)
        extra = extra_views(
            self.task.extra_views, views, batch, self.recipes, seed=self.seed, size=size
        )
        return [view.contiguous(memory_format=self.memory_format) for view in [*views, *extra]]


def fit(
    training: Training,
    fabric: Fabric,
    tracker: Tracker,
    on_first_views: Callable[[list[Tensor]], None] = lambda views: None,
) -> dict[str, float]:
    """Train, resuming from the checkpoint in the run's folder where there is one.

    Returns:
        the last logged values, and ``time/step_seconds`` as the median over all steps.

    Raises:
        UserError: when a loss is not finite or the embedding has collapsed.
        KeyboardInterrupt: after Ctrl-C, once a checkpoint is written.
    """
    task, loader = training.task, training.loader
    task.to(fabric.device, memory_format=training.memory_format).train()
    optimizer = build_optimizer(task, training.optim)
    state = _State(tracker.run.folder / CHECKPOINT, task, optimizer)
    tracker.run.rewind(state.step)
    model, optimizer = fabric.setup(task, optimizer)
    guard, metrics, num_steps = _Guard(), state.metrics, loader.num_steps
    shared = SharedLayer(task.encoder)

    with (
        TrainingProgress(training.title, state.step, num_steps, loader.batch_size) as progress,
        Interruptible() as interrupt,
    ):
        began = time.perf_counter()
        for batch in loader.iterate(state.step):
            step = batch.step
            lr = learning_rate(training.optim, step, num_steps)
            for group in optimizer.param_groups:
                group["lr"] = lr

            views = training.views(batch)
            if step == 0:
                on_first_views(views)
            losses = model(views, batch)
            weights = task.weights_at(step, num_steps)
            weighted = {name: weights[name] * loss for name, loss in losses.items()}
            total = sum(weighted.values())
            logged = tracker.due(step) or step == num_steps - 1
            pulls = {}
            if tracker.gradients_due(step):
                pulls = shared.gradient_norms(weighted, fabric.backward)
            fabric.backward(total)
            grad_norm = _clip(task, training.optim.clip_grad_norm, measure=logged)
            optimizer.step()
            optimizer.zero_grad()
            task.after_step(step, num_steps)

            now = time.perf_counter()
            state.advance(now - began)
            began = now
            if logged:
                metrics = {"loss/total": total, "optim/lr": lr, "grad/norm": grad_norm}
                metrics |= {f"loss/{name}": loss for name, loss in losses.items()}
                metrics |= {f"weighted/{name}": loss for name, loss in weighted.items()}
                metrics |= {f"grad/{name}": norm for name, norm in pulls.items()}
                metrics = {name: float(torch.as_tensor(v).detach()) for name, v in metrics.items()}
                metrics |= gauges(*(z_BD.float() for z_BD in task.last_embeddings[:2]))
                metrics["time/images_per_s"] = loader.batch_size / state.step_seconds(last=50)
                state.metrics = metrics
                guard.check(metrics, task.last_embeddings[0], step)
                tracker.log(step, metrics, batch.epoch)
                progress.show(step + 1, metrics["loss/total"])
            if state.age > training.checkpoint_seconds or interrupt.requested:
                state.save()
                if interrupt.requested:
                    raise KeyboardInterrupt
    return {**metrics, "time/step_seconds": state.step_seconds()}


def _clip(task: Task, limit: float | None, measure: bool) -> Tensor | float:
    """Clip gradients to ``limit``; the global norm where it is clipped or wanted, else NaN."""
    if limit is None and not measure:
        return float("nan")
    gradients = [p.grad for p in task.parameters() if p.grad is not None]
    if limit is None:
        return torch.nn.utils.get_total_norm(gradients)
    return torch.nn.utils.clip_grad_norm_(task.parameters(), limit)


class _State:
    """What a checkpoint holds beside the configuration, and when it was last written."""

    def __init__(self, path: Path, task: Task, optimizer: torch.optim.Optimizer):
        self.path, self.task, self.optimizer = path, task, optimizer
        self.step, self.durations, self.metrics = 0, [], {}
        self._saved = time.monotonic()
        if checkpoint := load_checkpoint(path):
            try:
                task.load_state_dict(checkpoint["task"])
                optimizer.load_state_dict(checkpoint["optimizer"])
            except (RuntimeError, ValueError, KeyError) as error:
                reason = " ".join(str(error).split())[:200]
                raise UserError(f"{path}: not a checkpoint of this network ({reason})") from error
            restore_random_state(checkpoint["random"])
            self.step, self.durations = checkpoint["step"], checkpoint["durations"]
            self.metrics = checkpoint["metrics"]

    def advance(self, seconds: float) -> None:
        self.step += 1
        self.durations.append(seconds)

    @property
    def age(self) -> float:
        """Seconds since the last checkpoint."""
        return time.monotonic() - self._saved

    def step_seconds(self, last: int = 0) -> float:
        """Median seconds a step, the first one (warm-up) left out where there are more."""
        return median(self.durations[1:][-last:] or self.durations)

    def save(self) -> None:
        state = {
            "task": self.task.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": random_state(),
            "step": self.step,
            "durations": self.durations,
            "metrics": self.metrics,
        }
        save_checkpoint(self.path, state)
        self._saved = time.monotonic()


class _Guard:
    """Stops a training that has nothing left to learn from."""

    def __init__(self) -> None:
        self.collapsed_in_a_row = 0

    def check(self, metrics: dict[str, float], embedding_BD: Tensor, step: int) -> None:
        # The total last: a loss of its own says more.
        for name, value in sorted(metrics.items(), key=lambda item: item[0] == "loss/total"):
            if name.startswith("loss/") and not abs(value) < float("inf"):
                raise UserError(
                    f"{name} is {value} at step {step}: lower optim.lr, set optim.clip_grad_norm, "
                    "or train with device.precision=fp32"
                )
        collapsed = is_collapsed(embedding_BD.float())
        self.collapsed_in_a_row = self.collapsed_in_a_row + 1 if collapsed else 0
        if self.collapsed_in_a_row >= COLLAPSE_PATIENCE:
            raise UserError(
                f"the embedding has collapsed at step {step} (collapse/std "
                f"{metrics['collapse/std']:.3f}): every image is mapped to nearly the same vector; "
                "lower optim.lr, or use a larger batch_size"
            )
