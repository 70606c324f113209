"""Steps per second with recorded outputs of the teacher, against a live teacher.

    python experiments/teacher_cache/rates.py [--npz images.npz] [--out records.jsonl]

A ResNet-18 for 32-pixel images teaches three smaller students by simreg (two layers) on two weak
views. The outputs are recorded first. Then the trainings, live and recorded, and the recording take
turns of some seconds each; all of them make views. On a CPU, seconds are those of all threads.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
import torch

from ssdistill.chain.arithmetic import FABRIC_PRECISION
from ssdistill.chain.recorded_outputs import live_outputs, read_recorded
from ssdistill.data.batch import Batch
from ssdistill.data.loader import Loader
from ssdistill.data.recipes import RECIPES
from ssdistill.distill.build import build_losses
from ssdistill.distill.cache.filling import LiveOutputs
from ssdistill.distill.cache.opening import TeacherOutputs, open_outputs
from ssdistill.distill.cache.sources import Recorded
from ssdistill.distill.distiller import Distiller
from ssdistill.models.backbones import build_encoder
from ssdistill.settings.registry import LOSSES
from ssdistill.train.fabric import build_fabric
from ssdistill.train.loop import Training
from ssdistill.train.memory import keep_freed_memory
from ssdistill.train.optim import OptimSettings, build_optimizer

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
from measuring import MODELS, SIZE, ImageSpec, interleave, load_images, publish, ratio

TEACHER, BATCH = "resnet18", 256
STUDENTS = ("small", "resnet18_w025", "mobilenetv3_small_050")
FEWEST_STEPS = 2
RECORDING = "recording"


@dataclass
class Images(ImageSpec):
    """An array of images as a store, as far as a key asks."""

    fingerprint: str = "benchmark"


def clock() -> float:
    """Seconds of all threads, which other load lengthens least; of the clock where a GPU works."""
    return time.perf_counter() if torch.cuda.is_available() else time.process_time()


class Stepper:
    """Trains one student, and goes on where it stopped."""

    def __init__(self, training: Training, fabric):
        self.training = training
        training.task.to(fabric.device, memory_format=training.memory_format).train()
        optimizer = build_optimizer(training.task, training.optim)
        self.model, self.optimizer = fabric.setup(training.task, optimizer)
        self.backward = fabric.backward
        self.batches: Iterator[Batch] = training.batches()

    def step(self) -> None:
        batch = next(self.batches)
        losses = self.model(self.training.views(batch), replace(batch, crops={}))
        self.backward(sum(losses.values()))
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.training.task.after_step(batch.step, self.training.loader.num_steps)

    def turn(self, seconds: float) -> Callable[[], float]:
        """Steps per second in a turn of so many seconds."""

        def turn() -> float:
            began, spent, steps = time.perf_counter(), clock(), 0
            while steps < FEWEST_STEPS or time.perf_counter() - began < seconds:
                self.step()
                steps += 1
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            return steps / (clock() - spent)

        return turn


def training_of(student: str, teacher, images: Images, fabric, precision: str) -> Training:
    """A distillation whose views repeat after one pass, by simreg alone."""
    torch.manual_seed(1)
    encoder = build_encoder(MODELS[student], SIZE)
    settings = {"feature": LOSSES.schema("simreg")(kind="simreg", depth=2)}
    losses = build_losses(encoder, teacher, settings, len(images))
    task = Distiller(encoder, teacher, losses, settings)
    return Training(
        task=task,
        loader=Loader(images, BATCH, seed=0, num_steps=10**6, device=fabric.device),
        recipes=(RECIPES["weak"],) * 2,
        optim=OptimSettings(),
        seed=0,
        precision=precision,
        memory_format=torch.channels_last,
        passes=1,
    )


class Recorder:
    """Records outputs again and again, batch by batch, as :func:`open_outputs` does."""

    def __init__(self, outputs: TeacherOutputs, live: LiveOutputs):
        self.outputs, self.live = outputs, live
        self.batches = iter(self._batches())

    def _batches(self) -> Iterator[int]:
        parts, layout = self.outputs.parts, self.outputs.layout
        while True:
            for part in range(len(parts)):
                number, start, end = parts.place(part)
                rows = []
                for outputs in self.live.of(number, np.arange(start, end)):
                    rows.append(layout.pack(outputs, self.live.name))
                    if sum(map(len, rows)) == end - start:
                        parts.write(part, np.concatenate(rows))
                    yield len(rows[-1])

    def turn(self, seconds: float) -> Callable[[], float]:
        """Images per second in a turn of so many seconds."""

        def turn() -> float:
            began, spent, images, steps = time.perf_counter(), clock(), 0, 0
            while steps < FEWEST_STEPS or time.perf_counter() - began < seconds:
                images += next(self.batches)
                steps += 1
            return images / (clock() - spent)

        return turn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--npz", type=Path, help="32x32 uint8 images; without it, generated ones")
    parser.add_argument("--rounds", type=int, default=5, help="turns of everything compared")
    parser.add_argument("--seconds", type=float, default=3.0, help="of one turn")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="append the record, one JSON line")
    parser.add_argument("--images", type=int, default=8192)
    parser.add_argument("--students", nargs="+", choices=MODELS, default=STUDENTS)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    images = Images(load_images(args.npz, args.images))
    fabric = build_fabric("auto", precision=FABRIC_PRECISION[args.precision])
    torch.manual_seed(0)
    teacher = build_encoder(MODELS[TEACHER], SIZE)
    turns, outputs = {}, None
    with tempfile.TemporaryDirectory() as folder:
        for student in args.students:
            live, recorded = (
                training_of(student, teacher, images, fabric, args.precision) for _ in range(2)
            )
            if outputs is None:
                recorded.task.to(fabric.device, memory_format=recorded.memory_format)
                source = live_outputs("teacher", recorded, fabric)
                outputs = open_outputs(Path(folder), source, images, args.precision, print)
                turns[RECORDING] = Recorder(outputs, source).turn(args.seconds)
            recorded.task.source = Recorded({"teacher": outputs.layout})
            read_recorded(recorded.loader, {"teacher": outputs})
            turns[f"{student} live"] = Stepper(live, fabric).turn(args.seconds)
            turns[f"{student} recorded"] = Stepper(recorded, fabric).turn(args.seconds)
        rates = interleave(turns, args.rounds, "steps per second")
    assert outputs is not None
    num_bytes = outputs.parts.num_bytes / len(images) / 2
    rows = [row_of(name, rates, num_bytes) for name in args.students]
    note = (
        f"teacher {TEACHER}, {len(images):,} images of {SIZE} pixels, two weak views, batch "
        f"{BATCH}, {args.precision}, {args.threads} threads; medians of {args.rounds} rounds; "
        f"{median(rates[RECORDING]):.0f} images recorded per CPU second"
    )
    title = "Distillation from recorded outputs"
    publish(args.out, "rates", title, note=note, rows=rows)


def row_of(student: str, rates: dict[str, list[float]], num_bytes: float) -> dict:
    """One row of the table; every recorded pass costs what a live one spends on the teacher."""
    live, recorded = rates[f"{student} live"], rates[f"{student} recorded"]
    found = ratio(recorded, live)
    rounds = zip(rates[RECORDING], live, recorded, strict=True)
    paid = [BATCH / images / (1 / slow - 1 / fast) for images, slow, fast in rounds]
    low, high = min(paid), max(paid)
    return {
        "student": student,
        "live, steps per CPU second": median(live),
        "recorded, steps per CPU second": median(recorded),
        "speed-up": f"{found['median']:.2f}× ({found['low']:.2f} to {found['high']:.2f})",
        "recording, CPU s per 1000 images and pass": 1000 / median(rates[RECORDING]),
        "bytes per image and view": num_bytes,
        "pays after, passes per recorded pass": f"{median(paid):.2f} ({low:.2f} to {high:.2f})",
    }


if __name__ == "__main__":
    main()
