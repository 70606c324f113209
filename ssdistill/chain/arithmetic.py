"""Choose precision and memory format of a training: as configured, or by a benchmark."""

import copy
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ssdistill.measure.precision import (
    CANDIDATES,
    FP16_CANDIDATES,
    Candidate,
    MemoryFormat,
    Precision,
    choose_precision,
    precision_key,
)
from ssdistill.train.activations import recomputed
from ssdistill.train.fabric import build_fabric
from ssdistill.train.loop import Training
from ssdistill.train.memory import keep_freed_memory
from ssdistill.train.optim import build_optimizer
from ssdistill.train.passes import Passes
from ssdistill.train.progress import console
from ssdistill.train.settings import DeviceSettings

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from lightning_fabric.connector import _PRECISION_INPUT

# Fabric announces its precision at every set-up, also at those that only measure.
logging.getLogger("lightning_fabric.utilities.rank_zero").setLevel(logging.WARNING)

ROUNDS = 25
"""Rounds of timed steps per ratio."""
FABRIC_PRECISION: "dict[Precision, _PRECISION_INPUT]" = {
    "fp32": "32-true",
    "bf16": "bf16-mixed",
    "fp16": "16-mixed",
}
MEMORY_FORMATS = {
    "contiguous": torch.contiguous_format,
    "channels_last": torch.channels_last,
}


def choose_arithmetic(training: Training, device: DeviceSettings, cache: Path) -> "Fabric":
    """Set precision and memory format of ``training``; the Fabric that goes with them.

    What the settings leave to ``auto`` is decided by a few timed steps of each combination on
    copies of the task, remembered in ``cache`` so that a resumed run computes as it began.
    """
    keep_freed_memory()
    known = FP16_CANDIDATES if device.precision == "fp16" else CANDIDATES
    candidates: list[Candidate] = [
        (precision, memory_format)
        for precision, memory_format in known
        if device.precision in ("auto", precision)
        and device.memory_format in ("auto", memory_format)
    ]
    if len(candidates) == 1:
        precision, memory_format = candidates[0]
    else:
        with torch.random.fork_rng(devices=_cuda_devices()):
            choice = choose_precision(
                _step_maker(training, device),
                candidates,
                cache=cache,
                key=_key(training, candidates),
            )
        precision, memory_format = choice.precision, choice.memory_format
        if not choice.remembered:
            console.print(
                f"  precision {precision}, memory format {memory_format} (fastest here)",
                style="dim",
            )
    training.precision = precision
    training.memory_format = MEMORY_FORMATS[memory_format]
    if device.compile:
        # Not its net: an encoder calls that by its parts, which would leave nothing compiled.
        training.task.encoder.compile()
    return _fabric(precision, device)


def _fabric(precision: Precision, device: DeviceSettings) -> "Fabric":
    return build_fabric(device.accelerator, precision=FABRIC_PRECISION[precision])


def _key(training: Training, candidates: list[Candidate]) -> dict[str, object]:
    task = training.task
    key = precision_key(task.encoder.spec, training.loader.batch_size, task.encoder.spec.image_size)
    # The widths of a pruned network are not in its spec, nor is what surrounds the encoder.
    shapes = sorted({tuple(p.shape) for p in task.parameters()})
    cut = {"microbatch": training.microbatch, "accumulate": training.accumulate}
    key |= cut if cut != {"microbatch": None, "accumulate": 1} else {}
    if training.checkpoint_activations:
        key["checkpoint_activations"] = True
    if getattr(task, "source", None) is not None:
        key["teachers"] = "recorded"
    return key | {
        "task": type(task).__name__,
        "losses": sorted(task.weights_at(0, 1)),
        "shapes": shapes,
        "candidates": candidates,
    }


def _step_maker(
    training: Training, device: DeviceSettings
) -> Callable[[Precision, MemoryFormat], Callable[[], None]]:
    """Builds one training step on a copy of the task, views ready."""

    def make_step(precision: Precision, memory_format: MemoryFormat) -> Callable[[], None]:
        layout = MEMORY_FORMATS[memory_format]
        candidate = replace(
            training, task=copy.deepcopy(training.task), precision=precision, memory_format=layout
        )
        return _step(candidate, _fabric(precision, device))

    return make_step


def _step(training: Training, fabric: "Fabric") -> Callable[[], None]:
    """One training step to be timed, views included; it changes the task it is given."""
    task, batch = training.task, training.batch(0)
    # torch takes a memory format beside the device, which its overloads leave out.
    task.to(fabric.device, memory_format=training.memory_format).train()  # pyright: ignore[reportCallIssue]
    model, optimizer = fabric.setup(task, build_optimizer(task, training.optim))
    passes = Passes(training, model, fabric)
    # Warm-ups begin at zero, and what weighs nothing would cost nothing.
    weights = dict.fromkeys(task.weights_at(0, 1), 1.0)

    def step() -> None:
        with recomputed(task.encoder, training.checkpoint_activations):
            passes(training.views(batch), replace(batch, crops={}), weights)
        optimizer.step()
        optimizer.zero_grad()
        task.after_step(batch.step, training.loader.num_steps)
        if fabric.device.type == "cuda":
            torch.cuda.synchronize(fabric.device)

    return step


def step_ratios(trainings: dict[str, tuple[Training, "Fabric"]], to: str) -> dict[str, float]:
    """Seconds a step of each training takes, as multiples of those of the one called ``to``.

    Steps are timed in turn and the shortest of each counts: what else a machine does lengthens
    some of them, and shortens none. The trainings are used up by it.
    """
    with torch.random.fork_rng(devices=_cuda_devices()):
        steps = {role: _step(*training) for role, training in trainings.items()}
        for step in steps.values():
            step()
        rounds = [{role: _seconds(step) for role, step in steps.items()} for _ in range(ROUNDS)]
    shortest = {role: min(r[role] for r in rounds) for role in steps}
    return {role: seconds / shortest[to] for role, seconds in shortest.items()}


def _seconds(step: Callable[[], None]) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def _cuda_devices() -> list[int]:
    return list(range(torch.cuda.device_count()))
