"""Kills of one of two processes at random moments: does the other end, and is the result the same?

    python experiments/several_processes/kills.py [--kills 50] [--seed 0] [--out records.jsonl]

A short experiment (pretraining, distillation, evaluation) runs once with two processes, without
interruption. Then, again and again from the beginning, one of the two is killed (SIGKILL) at a
random moment between the start and the last evaluation. The other must end within a minute. The
same command, run again, must end in the weights and metrics of the uninterrupted run, to the last
bit; only seconds and latency are not compared.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
from measuring import publish

ARGS = "{layers: [1, 1, 1, 0], channels: [16, 32, 64, 64], stem_type: deep, stem_width: 8}"
RUN = (
    f"teacher.encoder.args={ARGS}",
    f"student.encoder.args={ARGS}",
    "pretrain.steps=40",
    "pretrain.batch_size=64",
    "distill.steps=40",
    "distill.batch_size=64",
    "control=null",
    "compress=[]",
    "evaluate.pixels=false",
    "evaluate.linear=null",
    "evaluate.linear_sgd={steps: 30, lrs: [0.1]}",
    "checkpoint_seconds=0.3",
    "device.devices=2",
    "device.accelerator=cpu",
    "device.precision=fp32",
    "device.memory_format=contiguous",
)
LIMIT = 60
"""Seconds within which the other process must have ended."""
VARYING = ("time/", "train/seconds")
"""Metrics that are seconds, by the beginnings of their names."""
LATENCY = "latency-"
"""Stage that measures nothing but seconds, by the beginning of its folder's name."""


def start(root: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "ssdistill", "run", "quickstart", f"--runs={root}", *RUN]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def results(root: Path) -> dict[str, str]:
    """What every stage made: sha256 of the weights, and its metrics but for the seconds."""
    found = {
        str(file.relative_to(root)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted((root / "stages").rglob("*.safetensors"))
    }
    for file in sorted((root / "stages").glob("*/s0/run.json")):
        if file.parents[1].name.startswith(LATENCY):
            continue
        metrics = json.loads(file.read_text())["metrics"]
        kept = {k: v for k, v in sorted(metrics.items()) if not k.startswith(VARYING)}
        found[str(file.relative_to(root))] = json.dumps(kept)
    return found


def seconds_of_latency(root: Path) -> float:
    (file,) = (root / "stages").glob(f"{LATENCY}*/s0/run.json")
    return json.loads(file.read_text())["wall_seconds"]


def children(pid: int) -> list[int]:
    """Processes of the same command that this one has started."""
    with suppress(OSError):
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(c) for c in found if b"quickstart" in Path(f"/proc/{c}/cmdline").read_bytes()]
    return []


def alive(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def one_kill(root: Path, moment: float, number: int) -> dict | None:
    """Start, and kill a process after ``moment`` seconds; None if the run did not notice."""
    process = start(root)
    time.sleep(moment)
    pids = [process.pid, *children(process.pid)]
    if process.poll() is not None or number >= len(pids):
        process.kill()
        process.communicate()
        while any(alive(pid) for pid in pids):
            time.sleep(0.1)
        return None
    os.kill(pids[number], signal.SIGKILL)
    began = time.perf_counter()
    while any(alive(pid) for pid in pids) and time.perf_counter() - began < LIMIT:
        time.sleep(0.02)
    seconds = time.perf_counter() - began
    left = [pid for pid in pids if alive(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    said, _ = process.communicate()
    if process.returncode == 0:  # all was done
        return None
    errors = [line for line in said.splitlines() if line.startswith("error:")]
    doing = [line for line in said.splitlines() if line.startswith("[")]
    return {
        "killed": number,
        "moment": round(moment, 2),
        "during": doing[-1] if doing else "the start",
        "seconds": round(seconds, 2),
        "ended": not left,
        "said": errors,
    }


def again(root: Path) -> tuple[int, str]:
    process = start(root)
    said, _ = process.communicate()
    return process.returncode, said


def rows(trials: list[dict]) -> list[dict]:
    """One row for each of the two processes."""
    table = []
    for number in (0, 1):
        own = [trial for trial in trials if trial["killed"] == number]
        if not own:
            continue
        table.append(
            {
                "killed": f"process {number}",
                "kills": len(own),
                "the other ended": sum(trial["ended"] for trial in own),
                "after at most, seconds": max(trial["seconds"] for trial in own),
                "told in one line": sum(len(trial["said"]) == 1 for trial in own) if number else "",
                "equal after the next start": sum(trial["equal"] for trial in own),
            }
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, help="append a line for each kill")
    parser.add_argument("--out", type=Path, help="append the record, one JSON line")
    args = parser.parse_args()
    draws, trials = random.Random(args.seed), []
    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(scratch) / "whole"
        began = time.perf_counter()
        code, said = again(whole)
        if code:
            raise SystemExit(said)
        length = time.perf_counter() - began - seconds_of_latency(whole)
        expected = results(whole)
        print(f"uninterrupted: {length:.0f} s, {len(expected)} results", flush=True)
        while len(trials) < args.kills:
            root = Path(scratch) / f"killed {len(trials)} {draws.random()}"
            trial = one_kill(root, draws.uniform(0, length), draws.randrange(2))
            if trial is None:
                continue
            code, said = again(root)
            trial |= {"status": code, "equal": code == 0 and results(root) == expected}
            trials.append(trial)
            print(len(trials), json.dumps(trial), *([] if trial["equal"] else [said]), flush=True)
            if args.log:
                with args.log.open("a") as file:
                    file.write(json.dumps(trial) + "\n")
    note = (
        "pretraining and distillation of 40 steps each and their evaluation on two gloo processes "
        f"of one CPU, a checkpoint every 0.3 s; one kill in each of {len(trials)} runs"
    )
    publish(args.out, "kills", "Kills of one of two processes", note=note, rows=rows(trials))


if __name__ == "__main__":
    main()
