"""Training speed on a GPU, against the networks alone and the peak of the card.

    python experiments/benchmarks/gpu.py [--out records.jsonl]

Pretraining (SimCLR) and distillation (ResNet-50 to a student, `seed`) of ResNet-18 and ResNet-50 at
32 and 224 pixels, by what `ssdistill benchmark` measures: in float32, in the number format that is
fastest, and compiled. Images are generated arrays, so that the card and not the decoding of files
is measured. The fraction of the peak counts multiply-accumulates of networks as two operations, the
backward pass as two forward passes.
Prints one line and does nothing without a GPU.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from measuring import publish

from ssdistill.chain.benchmark import benchmark
from ssdistill.experiment.reading import load_experiment
from ssdistill.measure.macs import count_macs
from ssdistill.measure.throughput import Spread
from ssdistill.measure.timing import ALONE, WHOLE, Format, Timing
from ssdistill.models.backbones import EncoderSettings, build_encoder

PEAKS = {
    "H200": 989, "H100": 989, "A100": 312, "V100": 125, "L40": 181, "L4": 121, "A10": 125, "T4": 65,
}  # fmt: skip
"""Dense TFLOP/s in bfloat16 (V100, T4: float16) of NVIDIA's data sheets, by a part of the name."""
BATCHES = {
    ("resnet18", 32): 1024,
    ("resnet50", 32): 512,
    ("resnet18", 224): 256,
    ("resnet50", 224): 128,
}
TEACHER, BACKWARD, VIEWS = "resnet50", 2, 2


def config_of(name: str, size: int, kind: str) -> dict[str, Any]:
    """A config that trains ``name`` at this size; ``kind`` is pretrain or distill."""
    batch, stem = BATCHES[name, size], "small" if size == 32 else "native"
    network = {"encoder": {"name": name, "stem": stem}}
    tree: dict[str, Any] = {"schema": 1, "name": "gpu"}
    tree["data"] = {"kind": "npy", "path": "generated.npy", "image_size": size}
    tree["pretrain"] = {"kind": "simclr", "steps": 10, "batch_size": batch}
    if kind == "pretrain":
        return tree | {"teacher": network}
    tree["teacher"] = {"encoder": {"name": TEACHER, "stem": stem}}
    losses = {"seed": {"kind": "seed", "queue": 4096}}
    distill = {"steps": 10, "batch_size": batch, "losses": losses, "views": ["strong"]}
    return tree | {"student": network, "distill": distill}


def timed(name: str, size: int, kind: str, steps: int, rounds: int) -> Timing:
    """Time one training."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "gpu.yaml"
        path.write_text(yaml.safe_dump(config_of(name, size, kind)))
        experiment, _ = load_experiment(path, [])
        role = "teacher" if kind == "pretrain" else "distilled"
        (timing,) = benchmark(experiment, Path(folder), steps=steps, rounds=rounds, only=role)
    torch.cuda.empty_cache()
    return timing


def operations(name: str, size: int, kind: str) -> float:
    """Operations per image: those of the views that are encoded, forward and backward."""
    stem = "small" if size == 32 else "native"
    networks = {n: build_encoder(EncoderSettings(name=n, stem=stem), size) for n in {name, TEACHER}}
    macs = {n: count_macs(network) for n, network in networks.items()}
    if kind == "pretrain":
        return 2 * VIEWS * (1 + BACKWARD) * macs[name]
    # A distillation has one view, which both networks encode.
    return 2 * ((1 + BACKWARD) * macs[name] + macs[TEACHER])


def rows_of(timing: Timing, name: str, size: int, kind: str, peak: float | None) -> list[dict]:
    """One row per number format."""
    rows = []
    for number_format in timing.formats:
        whole = Spread.of(timing.rates(WHOLE, number_format))
        row = {
            "training": kind,
            "network": name,
            "pixels": size,
            "batch": BATCHES[name, size],
            "format": str(number_format),
            "images/s": f"{whole.median:.0f} ({whole.low:.0f} to {whole.high:.0f})",
            "of the networks alone": _fraction(timing, number_format),
        }
        if peak:
            reached = whole.median * operations(name, size, kind) / 1e12
            row["TFLOP/s"] = f"{reached:.0f}"
            row["of the peak"] = f"{reached / peak:.1%}"
        rows.append(row)
    return rows


def _fraction(timing: Timing, number_format: Format) -> str:
    whole, alone = (timing.rates(program, number_format) for program in (WHOLE, ALONE))
    found = Spread.of_ratios(whole, alone)
    return f"{found.median:.2f} ({found.low:.2f} to {found.high:.2f})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps per turn")
    parser.add_argument("--rounds", type=int, default=3, help="turns of everything compared")
    parser.add_argument("--sizes", type=int, nargs="+", choices=(32, 224), default=(32, 224))
    parser.add_argument("--out", type=Path, help="append the record, one JSON line")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("there is no GPU: skipped")
        return 0
    card = torch.cuda.get_device_name()
    peak = next((value for name, value in PEAKS.items() if name in card), None)
    rows: list[dict] = []
    for size in args.sizes:
        for name in ("resnet18", "resnet50"):
            for kind in ("pretrain", "distill"):
                timing = timed(name, size, kind, args.steps, args.rounds)
                rows += rows_of(timing, name, size, kind, peak)
                print(rows[-len(timing.formats) :], flush=True)
    note = (
        f"{args.rounds} rounds of {args.steps} steps, median (range); peak of the card "
        f"{peak or 'unknown'} TFLOP/s in bfloat16, dense"
    )
    publish(args.out, "gpu", "Training on a GPU", rows=rows, note=note)
    return 0


if __name__ == "__main__":
    sys.exit(main())
