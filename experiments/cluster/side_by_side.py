"""Stages of several seeds one after the other, and side by side on Ray: seconds, and equal weights.

    python experiments/cluster/side_by_side.py [--rounds 3] [--seeds 2] [--out records.jsonl]

The same experiment runs as a command, in turns: in one process with all cores (the default), in
one process with one thread, and with ``--on ray``, which starts a cluster on this machine and
gives every stage one core. Every run begins with an empty runs folder; starting Python and Ray
counts. Weights, and all metrics but seconds, of the second and the third must be equal to the
last bit; with several threads sums are added in another order.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
sys.path.append(str(Path(__file__).resolve().parents[1] / "several_processes"))
from kills import results
from measuring import publish

FIXED = ("device.accelerator=cpu", "device.precision=fp32", "device.memory_format=contiguous")
ALL_CORES, ONE_THREAD, ON_RAY = (
    "one process, all cores",
    "one process, one thread",
    "--on ray, one core each",
)
WAYS = {
    ALL_CORES: (),
    ONE_THREAD: ("device.threads=1",),
    ON_RAY: ("device.threads=1", "--on", "ray"),
}


def run(config: str, seeds: int, changes: list[str], words: tuple[str, ...], root: Path) -> float:
    """Seconds of one command from an empty runs folder to its end."""
    shutil.rmtree(root, ignore_errors=True)
    command = [sys.executable, "-m", "ssdistill", "run", config, f"seeds={list(range(seeds))}"]
    command += [*FIXED, *changes, *words, "--runs", str(root)]
    began = time.perf_counter()
    done = subprocess.run(
        command, env={**os.environ, "WANDB_MODE": "disabled"}, capture_output=True, text=True
    )
    seconds = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("changes", nargs="*", help="of the config, such as pretrain.steps=40")
    parser.add_argument("--config", default="quickstart")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3, help="turns of each way")
    parser.add_argument("--out", type=Path, help="append the record, one JSON line")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        roots = {name: Path(scratch) / str(number) for number, name in enumerate(WAYS)}
        compared = []

        def turn(name: str) -> float:
            seconds = run(args.config, args.seeds, args.changes, WAYS[name], roots[name])
            if name == ON_RAY:
                ours, theirs = results(roots[ON_RAY]), results(roots[ONE_THREAD])
                equal = sum(theirs.get(key) == value for key, value in ours.items())
                compared.append((equal, len(ours.keys() | theirs.keys())))
            print(f"{name}: {seconds:.1f} s", flush=True)
            return seconds

        found = {name: [] for name in WAYS}
        for _ in range(args.rounds):
            for name in WAYS:
                found[name].append(turn(name))
    rows = [
        {
            "stages": name,
            "seconds": round(median(seconds), 1),
            "range": f"{min(seconds):.1f} to {max(seconds):.1f}",
            "n": len(seconds),
            "times as fast as all cores": round(
                median(a / b for a, b in zip(found[ALL_CORES], seconds, strict=True)), 2
            ),
            "equal to one thread": f"{min(compared)[0]} of {max(n for _, n in compared)}"
            if name == ON_RAY
            else "",
        }
        for name, seconds in found.items()
    ]
    note = (
        f"`{' '.join([args.config, *args.changes])}` with {args.seeds} seeds, from an empty "
        "runs folder, commands in turns; *equal*: sha256 of weights, and metrics of stages other "
        "than seconds, in the round with the fewest"
    )
    publish(
        args.out,
        "side_by_side",
        "Stages one after the other and side by side",
        note=note,
        rows=rows,
    )


if __name__ == "__main__":
    main()
