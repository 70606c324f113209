"""Shared by the benchmarks: taking turns, ratios, records, images, and the models they train."""

import argparse
import copy
import json
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass
from multiprocessing import active_children, get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress

from ssdistill.chain.arithmetic import MEMORY_FORMATS
from ssdistill.data.loader import Loader
from ssdistill.data.recipes import RECIPES
from ssdistill.models.backbones import EncoderSettings, build_encoder
from ssdistill.pretrain.simclr import SimCLR
from ssdistill.record.provenance import provenance
from ssdistill.report.readme import benchmark_table
from ssdistill.train.loop import Training
from ssdistill.train.optim import OptimSettings, build_optimizer

SIZE = 32
FEWEST_STEPS = 3
"""Steps of a turn, however slow they are; the first is not timed."""
RATE, TEMPERATURE = 0.06, 0.5
"""Plain SGD at this rate and NT-Xent at this temperature: lightly's examples, and all of these."""
SMALL_RESNET = {"layers": (1, 1, 1, 0), "channels": (32, 64, 128, 128)}
SMALL_RESNET |= {"stem_type": "deep", "stem_width": 16}
QUARTER_RESNET18 = {"channels": (16, 32, 64, 128), "stem_type": "deep", "stem_width": 8}
MODELS = {
    "small": EncoderSettings(name="resnet10t", args=SMALL_RESNET, stem="small", stem_stride=2),
    "resnet18_w025": EncoderSettings(name="resnet18", args=QUARTER_RESNET18, stem="small"),
    "resnet18": EncoderSettings(name="resnet18", stem="small"),
    "mobilenetv3_small_050": EncoderSettings(name="mobilenetv3_small_050", stem="small"),
}

AfterStep = Callable[[], None]


def arguments(description: str, rounds: int, seconds: float = 0) -> argparse.ArgumentParser:
    """A parser with the options all benchmarks have; ``--seconds`` where turns are timed."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--npz", type=Path, help="32x32 uint8 images; without it, generated ones")
    parser.add_argument("--rounds", type=int, default=rounds, help="turns of everything compared")
    if seconds:
        parser.add_argument("--seconds", type=float, default=seconds, help="of one turn")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="append the record, one JSON line")
    return parser


def interleave(
    turns: dict[str, Callable[[], float]], rounds: int, title: str
) -> dict[str, list[float]]:
    """What each turn returned in each round, A B C A B C …; one round before them is not kept.

    A load on the machine that lasts longer than a turn meets all of them alike.
    """
    found: dict[str, list[float]] = {name: [] for name in turns}
    with Progress(transient=True, disable=not sys.stdout.isatty()) as bar:
        line = bar.add_task(title, total=(rounds + 1) * len(turns))
        for number in range(rounds + 1):
            for name, turn in turns.items():
                bar.update(line, description=f"{title}: {name}")
                value = turn()
                bar.advance(line)
                if number:
                    found[name].append(value)
    return found


def ratio(upper: list[float], lower: list[float]) -> dict[str, float]:
    """Median and range of the ratios within a round."""
    ratios = [a / b for a, b in zip(upper, lower, strict=True)]
    return {"median": median(ratios), "low": min(ratios), "high": max(ratios), "n": len(ratios)}


def publish(
    out: Path | None,
    benchmark: str,
    title: str,
    ratios: dict | None = None,
    note: str = "",
    rows: list[dict] | None = None,
) -> None:
    """Print the ratios, or the rows, and append them to ``out`` in the form the reports read."""
    record = {"benchmark": benchmark, "title": title, "note": note}
    record |= {"ratios": ratios} if ratios else {"rows": rows}
    record["provenance"] = provenance()
    Console().print(benchmark_table(record).to_rich())
    if out:
        with out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def load_images(path: Path | None, count: int) -> np.ndarray:
    """The first (N, 32, 32, 3) uint8 array of an ``.npz``; without a file, generated images."""
    if path is None:
        return np.resize(natural_images(min(count, 4096)), (count, SIZE, SIZE, 3))
    with np.load(path) as file:
        for name in file.files:
            array = file[name]
            if array.dtype == np.uint8 and array.shape[1:] == (SIZE, SIZE, 3):
                return np.ascontiguousarray(array[:count])
    raise SystemExit(f"{path} holds no uint8 array of shape (N, {SIZE}, {SIZE}, 3)")


def natural_images(count: int) -> np.ndarray:
    """Random images with the 1/f spectrum of photographs, uint8 NHWC."""
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(SIZE)[:, None], np.fft.rfftfreq(SIZE)[None])
    frequency[0, 0] = 1 / SIZE
    noise = np.fft.rfft2(rng.standard_normal((count, 3, SIZE, SIZE))) / frequency
    x = np.fft.irfft2(noise, s=(SIZE, SIZE))
    x = x / x.std(axis=(2, 3), keepdims=True) * 0.22 + 0.47
    return (x.clip(0, 1) * 255).astype(np.uint8).transpose(0, 2, 3, 1).copy()


@dataclass
class ImageSpec:
    """An array of images as a store, as far as a loader asks."""

    images: np.ndarray

    def __len__(self) -> int:
        return len(self.images)


def simclr_training(
    settings: EncoderSettings, images_NHWC: np.ndarray, batch_size: int, device: torch.device
) -> Training:
    """A SimCLR pretraining that does not end, as the chain sets one up."""
    return Training(
        task=SimCLR(build_encoder(settings, SIZE), temperature=TEMPERATURE),
        loader=Loader(ImageSpec(images_NHWC), batch_size, 0, 10**9, device),
        recipes=(RECIPES["simclr"],) * 2,
        optim=OptimSettings(
            kind="sgd", lr=RATE, momentum=0, weight_decay=0, schedule="constant", warmup=0
        ),
        seed=0,
    )


def train_bare(
    training: Training, precision: str, memory_format: str, after_step: AfterStep
) -> None:
    """Optimizer steps on views made once: the model alone, nothing around it but torch."""
    layout = MEMORY_FORMATS[memory_format]
    task = copy.deepcopy(training.task).to(training.loader.device, memory_format=layout).train()
    batch = training.batch(0)
    views = [view.contiguous(memory_format=layout) for view in training.views(batch)]
    optimizer = build_optimizer(task, training.optim)
    autocast = torch.autocast(views[0].device.type, torch.bfloat16, enabled=precision == "bf16")
    while True:
        with autocast:
            losses = task(views, batch)
        sum(losses.values()).backward()
        optimizer.step()
        optimizer.zero_grad()
        after_step()


class Stop(Exception):
    """Ends a training from within."""


class Lane:
    """A training in a process of its own that moves only while it is its turn.

    It has its own threads and its own heap, as when it runs alone. Between turns it waits and
    its loader's workers are stopped where they are: full queues and warm caches are there again
    at the next turn, and nothing of it runs in another's time. This process must not have
    computed with torch before: threads do not survive a fork.

    Args:
        train: trains until it is stopped, calling what it is given after every step.
    """

    def __init__(self, train: Callable[[AfterStep], None]):
        context = get_context("fork")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=self._run, args=(train, theirs))
        self._process.start()
        theirs.close()

    def turn(self, seconds: float) -> float:
        """Steps per second over about ``seconds``; starting up and the first step do not count."""
        self._ours.send(seconds)
        answer = self._ours.recv()
        if isinstance(answer, str):
            raise SystemExit(answer)
        return answer

    def close(self) -> None:
        """Let the training unwind and its workers end."""
        with suppress(OSError):
            self._ours.send(None)
        self._process.join(30)
        self._process.kill()

    def _run(self, train: Callable[[AfterStep], None], pipe: Connection) -> None:
        self._ours.close()
        self._pipe = pipe
        with quiet():
            try:
                self._await_turn()
                train(self._after_step)
            except (Stop, EOFError):
                pass
            except Exception:
                pipe.send(traceback.format_exc())

    def _await_turn(self) -> None:
        seconds = self._pipe.recv()
        if seconds is None:
            raise Stop
        self._ticks: list[float] = []
        self._until = time.perf_counter() + seconds

    def _after_step(self) -> None:
        # Where steps are queued on a device, only the ends of a turn wait for it.
        due = len(self._ticks) + 1 >= FEWEST_STEPS and time.perf_counter() >= self._until
        if torch.cuda.is_available() and (due or not self._ticks):
            torch.cuda.synchronize()
        self._ticks.append(time.perf_counter())
        if due:
            _signal_workers(signal.SIGSTOP)
            try:
                self._pipe.send((len(self._ticks) - 1) / (self._ticks[-1] - self._ticks[0]))
                self._await_turn()
            finally:
                _signal_workers(signal.SIGCONT)


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps back what trainings say: bars and hints of several would write over one another."""
    logging.disable(logging.WARNING)
    with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):
        yield


def _signal_workers(number: int) -> None:
    for worker in active_children():
        os.kill(worker.pid, number)
