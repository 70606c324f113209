"""Which number format and memory layout a training gets: as told, or as measured here."""

import copy
from collections.abc import Callable
from pathlib import Path

import torch
from lightning_fabric import Fabric

from ssdistill.measure.precision import CANDIDATES, choose_precision, precision_key
from ssdistill.train.loop import Training
from ssdistill.train.optim import build_optimizer
from ssdistill.train.progress import console
from ssdistill.train.settings import DeviceSettings

FABRIC_PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed"}
MEMORY_FORMATS = {
    "contiguous": torch.contiguous_format,
    "channels_last": torch.channels_last,
}


def choose_arithmetic(training: Training, device: DeviceSettings, cache: Path) -> Fabric:
    """Set precision and memory format of ``training``; the Fabric that goes with them.

    What the settings leave to ``auto`` is decided by a few timed steps of each combination on
    copies of the task, remembered in ``cache`` so that a resumed run computes as it began.
    """
    candidates = [
        (precision, memory_format)
        for precision, memory_format in CANDIDATES
        if device.precision in ("auto", precision)
        and device.memory_format in ("auto", memory_format)
    ]
    if len(candidates) == 1:
        precision, memory_format = candidates[0]
    else:
        with torch.random.fork_rng(devices=_cuda_devices()):
            choice = choose_precision(
                _step_maker(training, device), candidates, cache=cache, key=_key(training)
            )
        precision, memory_format = choice.precision, choice.memory_format
        if not choice.remembered:
            console.print(f"  {precision}, {memory_format} measured fastest", style="dim")
    training.precision = precision
    training.memory_format = MEMORY_FORMATS[memory_format]
    if device.compile:
        training.task.encoder.net.compile()
    return _fabric(precision, device)


def _fabric(precision: str, device: DeviceSettings) -> Fabric:
    return Fabric(accelerator=device.accelerator, devices=1, precision=FABRIC_PRECISION[precision])


def _key(training: Training) -> dict[str, object]:
    task = training.task
    key = precision_key(task.encoder.spec, training.loader.batch_size, task.encoder.spec.image_size)
    # The widths of a pruned network are not in its spec, nor is what surrounds the encoder.
    shapes = sorted({tuple(p.shape) for p in task.parameters()})
    return key | {"task": type(task).__name__, "weights": task.weights, "shapes": shapes}


def _step_maker(
    training: Training, device: DeviceSettings
) -> Callable[[str, str], Callable[[], None]]:
    """Builds one training step on a copy of the task, views ready."""
    batch = training.loader.batch(0)
    views = training.views(batch)

    def make_step(precision: str, memory_format: str) -> Callable[[], None]:
        layout = MEMORY_FORMATS[memory_format]
        fabric = _fabric(precision, device)
        task = copy.deepcopy(training.task).to(fabric.device, memory_format=layout).train()
        model, optimizer = fabric.setup(task, build_optimizer(task, training.optim))
        laid_out = [view.contiguous(memory_format=layout) for view in views]

        def step() -> None:
            losses = model(laid_out, batch)
            fabric.backward(sum(task.weights[name] * loss for name, loss in losses.items()))
            optimizer.step()
            optimizer.zero_grad()
            if fabric.device.type == "cuda":
                torch.cuda.synchronize(fabric.device)

        return step

    return make_step


def _cuda_devices() -> list[int]:
    return list(range(torch.cuda.device_count()))
