"""Quality of the automatic choice of number format and memory layout.

    python experiments/benchmarks/precision.py [--npz images.npz] [--out records.jsonl]

Every fixed combination trains SimCLR on views made once, in turns and for longer than the choice
may take; then the choice is made several times, each in a fresh process, as at the start of a run,
and compared with the combination that was really fastest.
"""

import sys
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import numpy as np
import torch
from lightning_fabric import Fabric
from measuring import (
    MODELS,
    AfterStep,
    Lane,
    arguments,
    interleave,
    load_images,
    publish,
    quiet,
    ratio,
    simclr_training,
    train_bare,
)
from rich.progress import track

from ssdistill.chain.arithmetic import MEMORY_FORMATS, choose_arithmetic
from ssdistill.measure.precision import CANDIDATES
from ssdistill.train.settings import DeviceSettings

BATCHES = {"small": 256, "resnet18_w025": 128, "resnet18": 16, "mobilenetv3_small_050": 64}
"""A step takes a second at most on two cores."""
PLAIN = "fp32 contiguous"


def train_fixed(
    name: str, images_NHWC: np.ndarray, candidate: tuple[str, str], after_step: AfterStep
) -> None:
    """Train in one number format and layout until stopped."""
    where = Fabric(accelerator="auto", devices=1).device
    training = simclr_training(MODELS[name], images_NHWC, BATCHES[name], where)
    train_bare(training, *candidate, after_step)


def fixed(
    name: str, images_NHWC: np.ndarray, rounds: int, seconds: float
) -> dict[str, list[float]]:
    """Images per second of every combination in every round."""
    with ExitStack() as stack:
        turns = {}
        for candidate in CANDIDATES:
            lane = Lane(lambda call, c=candidate: train_fixed(name, images_NHWC, c, call))
            stack.callback(lane.close)
            turns[" ".join(candidate)] = lambda lane=lane: BATCHES[name] * lane.turn(seconds)
        return interleave(turns, rounds, name)


def choose(name: str, images_NHWC: np.ndarray, threads: int) -> str:
    """The combination a training would start with now."""
    torch.set_num_threads(threads)
    where = Fabric(accelerator="auto", devices=1).device
    training = simclr_training(MODELS[name], images_NHWC, BATCHES[name], where)
    with tempfile.TemporaryDirectory() as folder, quiet():
        choose_arithmetic(training, DeviceSettings(), Path(folder))
    layout = next(k for k, v in MEMORY_FORMATS.items() if v == training.memory_format)
    return f"{training.precision} {layout}"


def choices(name: str, images_NHWC: np.ndarray, threads: int, repeats: int) -> list[str]:
    """As :func:`choose`, several times, each in a process of its own."""
    made = []
    # Without a refreshing thread: processes are forked while the bar is up.
    how = {"transient": True, "auto_refresh": False, "disable": not sys.stdout.isatty()}
    for _ in track(range(repeats), f"{name}: automatic", **how):
        with ProcessPoolExecutor(1, mp_context=get_context("fork")) as process:
            made.append(process.submit(choose, name, images_NHWC, threads).result())
    return made


def main() -> None:
    parser = arguments(__doc__, rounds=6, seconds=0.9)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=tuple(MODELS))
    parser.add_argument("--choices", type=int, default=3, help="how often to choose, per model")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    ratios, notes = {}, [f"{args.threads} threads, medians in images/s"]
    for name in args.models:
        images_NHWC = load_images(args.npz, BATCHES[name])
        rates = fixed(name, images_NHWC, args.rounds, args.seconds)
        medians = {candidate: median(values) for candidate, values in rates.items()}
        made = choices(name, images_NHWC, args.threads, args.choices)
        best = max(medians, key=medians.get)
        chosen = [medians[candidate] for candidate in made]
        ratios[f"{name}: automatic / best fixed"] = ratio(chosen, [medians[best]] * len(made))
        usual = Counter(made).most_common(1)[0][0]
        ratios[f"{name}: automatic / {PLAIN}"] = ratio(rates[usual], rates[PLAIN])
        how_often = ", ".join(f"{c} {n} of {len(made)}" for c, n in Counter(made).items())
        shown = ", ".join(f"{c} {value:.0f}" for c, value in medians.items())
        notes.append(f"{name} (batch {BATCHES[name]}; chosen {how_often}): {shown}")
    publish(args.out, "precision", "Automatic precision and layout", ratios, "; ".join(notes))


if __name__ == "__main__":
    main()
