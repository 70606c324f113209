"""Rates that the arithmetic of large data sets starts from, measured on this machine.

    python experiments/scale/rates.py [--batch 16] [--out experiments/scale/records.jsonl]

Per network at 224 pixels: multiply-accumulates and parameters of the encoder, images per second of
its forward pass (a teacher), and of forward, backward and optimizer step (a student, or a
pretraining, with one view), in the number format that is fastest here; and the time that two
processes take to average its gradients (gloo on the CPU). They take turns; medians are shown.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from averaging import PROCESSES, averaging_seconds

from ssdistill.chain.benchmark_steps import wait_for
from ssdistill.measure.macs import count_macs
from ssdistill.measure.throughput import take_turns
from ssdistill.models.backbones import EncoderSettings, build_encoder
from ssdistill.train.fabric import device_of

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
from measuring import publish

NETWORKS, SIZE = ("resnet18", "resnet50"), 224
FORMATS = (("fp32", torch.float32), ("bf16", torch.bfloat16))


def steps_of(name: str, batch: int, device: torch.device) -> dict[str, Callable[[], float]]:
    """Turns that return images per second, by what is done."""
    turns = {}
    for precision, dtype in FORMATS:
        torch.manual_seed(0)
        net = build_encoder(EncoderSettings(name=name, stem="native"), SIZE).net
        net = net.to(device, memory_format=torch.channels_last)
        images_BCHW = torch.rand(batch, 3, SIZE, SIZE, device=device)
        images_BCHW = images_BCHW.contiguous(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-8, momentum=0.9)
        autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)

        def forward(net=net, images_BCHW=images_BCHW, autocast=autocast) -> None:
            with torch.no_grad(), autocast:
                net.eval()(images_BCHW)

        def train(net=net, images_BCHW=images_BCHW, autocast=autocast, optimizer=optimizer) -> None:
            with autocast:
                loss = net.train()(images_BCHW).float().square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        turns[f"{precision} forward"] = lambda step=forward: _rate(step, batch, device)
        turns[f"{precision} training"] = lambda step=train: _rate(step, batch, device)
    return turns


def _rate(step: Callable[[], None], batch: int, device: torch.device) -> float:
    """Images per second; the round that does not count warms up."""
    count = 20 if device.type == "cuda" else 1
    wait_for(device)
    began = time.perf_counter()
    for _ in range(count):
        step()
    wait_for(device)
    return batch * count / (time.perf_counter() - began)


def row_of(name: str, batch: int, rounds: int, device: torch.device) -> dict:
    """What is measured of one network."""
    encoder = build_encoder(EncoderSettings(name=name, stem="native"), SIZE)
    count = sum(p.numel() for p in encoder.parameters())
    turns = steps_of(name, batch, device)
    measured = take_turns(
        {what: lambda turn=turn: {"rate": turn()} for what, turn in turns.items()}, rounds
    )
    rates = {what: median(v["rate"] for v in values) for what, values in measured.items()}
    best = max(("fp32", "bf16"), key=lambda precision: rates[f"{precision} training"])
    return {
        "network": name,
        "GMACs": count_macs(encoder) / 1e9,
        "parameters, M": count / 1e6,
        "format": best,
        "forward, images/s": max(rates["fp32 forward"], rates["bf16 forward"]),
        "training, images/s": rates[f"{best} training"],
        "averaging gradients, s": averaging_seconds(count),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=16, help="images of a step")
    parser.add_argument("--rounds", type=int, default=3, help="turns of everything compared")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="append the record, one JSON line")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = device_of("auto")
    rows = [row_of(name, args.batch, args.rounds, device) for name in NETWORKS]
    note = (
        f"one view of {SIZE} pixels, batch {args.batch}, channels_last, {args.threads} threads; "
        f"medians of {args.rounds} rounds; gradients in float32, {PROCESSES} processes, gloo"
    )
    publish(args.out, "networks", "Networks on this machine", rows=rows, note=note)


if __name__ == "__main__":
    main()
