"""Peak memory of a training step in micro-batches.

    python experiments/benchmarks/microbatch.py [--batch 512] [--out records.jsonl]

SimCLR of a small ResNet on 32x32 images, with the whole batch and with ever smaller micro-batches,
each in a separate process. What counts is the highest resident memory (VmHWM) beyond what the
process had once network, optimizer and views were there.
"""

import argparse
from multiprocessing import get_context
from pathlib import Path

import torch
from lightning_fabric import Fabric
from measuring import MODELS, load_images, publish, simclr_training
from probe_memory import resident

from ssdistill.measure.memory import CLEAR, RESET_PEAK
from ssdistill.train.optim import build_optimizer
from ssdistill.train.passes import Passes

MODEL = "small"
STEPS = 3


def measure(batch_size: int, microbatch: int | None, threads: int) -> dict[str, float]:
    """Peak of resident memory beyond the start, and the last loss."""
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    device = torch.device("cpu")
    training = simclr_training(MODELS[MODEL], load_images(None, batch_size), batch_size, device)
    training.microbatch = microbatch
    task, fabric = training.task.train(), Fabric(accelerator="cpu", devices=1)
    model, optimizer = fabric.setup(task, build_optimizer(task, training.optim))
    passes, batch = Passes(training, model, fabric), training.batch(0)
    views = training.views(batch)
    baseline = resident("VmRSS")
    CLEAR.write_text(RESET_PEAK)
    for _ in range(STEPS):
        losses, _ = passes(views, batch, {"simclr": 1.0})
        optimizer.step()
        optimizer.zero_grad()
    peak = resident("VmHWM") - baseline
    return {"peak": peak, "loss": float(losses["simclr"])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=512, help="images of a step")
    parser.add_argument("--microbatches", type=int, nargs="+", default=[256, 128, 64, 32])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="append the record, one JSON line")
    args = parser.parse_args()
    rows, whole = [], {}
    for microbatch in (None, *args.microbatches):
        with get_context("spawn").Pool(1) as pool:
            facts = pool.apply(measure, (args.batch, microbatch, args.threads))
        whole = whole or facts
        row = {"batch": args.batch, "microbatch": microbatch or "whole"}
        row |= {"peak (MiB)": f"{facts['peak'] / 2**20:.0f}"}
        row |= {"of whole": f"{facts['peak'] / whole['peak']:.2f}"}
        print(row | facts, flush=True)
        rows.append(row)
    note = (
        f"SimCLR, {MODEL} on 32x32 images, two views, float32, {args.threads} threads; "
        f"memory beyond network, optimizer and views in {STEPS} steps"
    )
    publish(args.out, "microbatch", "Memory of micro-batches", rows=rows, note=note)


if __name__ == "__main__":
    main()
