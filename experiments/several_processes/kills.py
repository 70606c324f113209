"""Kills of one of two processes at random moments: does the other end, and is the result the same?

    python experiments/several_processes/kills.py [--kills 50] [--seed 0] [--out records.jsonl]

A short experiment (pretraining, distillation, evaluation) runs once with two processes, without
interruption. Then, again and again from the beginning, one of the two is killed (SIGKILL) at a
random moment between the start and the last evaluation. The other must end within a minute; before
the two have met, a launcher ends it, which this script then does. The
same command, run again, must end in the weights and metrics of the uninterrupted run, to the last
bit; only seconds and latency are not compared.

The processes are forks of this one, which has imported everything, and find each other as if
torchrun had started them; with ``--spawned``, process 0 starts the other one itself
(``device.devices=2``), and sees at once that it is gone. Moments are in seconds of computing, so
that other load on the machine does not move them.
"""

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
from measuring import publish

from ssdistill.commands.main import main as main_of_ssdistill

ARGS = "{layers: [1, 1, 1, 0], channels: [16, 32, 64, 64], stem_type: deep, stem_width: 8}"
RUN = (
    f"teacher.encoder.args={ARGS}",
    f"student.encoder.args={ARGS}",
    "pretrain.steps=24",
    "pretrain.batch_size=64",
    "distill.steps=24",
    "distill.batch_size=64",
    "control=null",
    "compress=[]",
    "evaluate.pixels=false",
    "evaluate.linear=null",
    "evaluate.linear_sgd={steps: 30, lrs: [0.1]}",
    "checkpoint_seconds=0.2",
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


@dataclass
class Started:
    """Two processes of one run.

    Attributes:
        pids: of process 0 and, once there is one, of process 1.
        said: the file that both write to.
    """

    pids: list[int]
    said: Path

    def grow(self) -> None:
        """Look for a process that process 0 has started."""
        if len(self.pids) == 1:
            self.pids += children(self.pids[0])[:1]

    def wait(self) -> int:
        """Wait for all; return the status of process 0, negative for a signal."""
        codes = [os.waitstatus_to_exitcode(os.waitpid(self.pids[0], 0)[1])]
        for pid in self.pids[1:]:
            with suppress(ChildProcessError):  # a child of process 0
                os.waitpid(pid, 0)
        return codes[0]


def start(root: Path, spawned: bool) -> Started:
    root.mkdir(parents=True, exist_ok=True)
    said = root / "said.txt"
    words = ["run", "quickstart", f"--runs={root}", *RUN]
    if spawned:
        command = [sys.executable, "-m", "ssdistill", *words, "device.devices=2"]
        with said.open("a") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file)
        return Started([process.pid], said)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    return Started([fork(number, port, words, said) for number in (0, 1)], said)


def fork(number: int, port: str, words: list[str], said: Path) -> int:
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "none"}
    file = os.open(said, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)
    status = 70
    with suppress(BaseException):
        try:
            status = main_of_ssdistill(words)
        except SystemExit as left:
            status = left.code if isinstance(left.code, int) else 1
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def results(root: Path) -> dict[str, str]:
    """What every stage made: sha256 of the weights, and its metrics but for the seconds."""
    found = {
        str(file.relative_to(root)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted((root / "stages").rglob("*.safetensors"))
    }
    for file in sorted((root / "stages").glob("*/s*/run.json")):
        if file.parents[1].name.startswith(LATENCY):
            continue
        metrics = json.loads(file.read_text())["metrics"]
        kept = {k: v for k, v in sorted(metrics.items()) if not k.startswith(VARYING)}
        found[str(file.relative_to(root))] = json.dumps(kept)
    return found


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


def computed(pid: int) -> float:
    """Seconds that a process has computed; endless once it is gone."""
    with suppress(OSError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return float("inf")


def one_kill(root: Path, moment: float, number: int, spawned: bool) -> dict | None:
    """Kill a process once process 0 has computed ``moment`` seconds; None if nothing was lost."""
    run = start(root, spawned)
    while computed(run.pids[0]) < moment and alive(run.pids[0]):
        time.sleep(0.02)
    run.grow()
    if number >= len(run.pids) or not alive(run.pids[0]):
        stop(run)
        return None
    os.kill(run.pids[number], signal.SIGKILL)
    began, met = time.perf_counter(), "[1/" in run.said.read_text()
    while met and any(alive(pid) for pid in run.pids) and time.perf_counter() - began < LIMIT:
        time.sleep(0.02)
    seconds = time.perf_counter() - began
    left = [pid for pid in run.pids if alive(pid)]
    status = stop(run)
    if status == 0:  # all was done
        return None
    lines = run.said.read_text().splitlines()
    doing = [line for line in lines if re.match(r"\[\d+/\d+\]", line)]
    return {
        "killed": number,
        "met": met,
        "moment": round(moment, 2),
        "during": doing[-1] if doing else "the start",
        "seconds": round(seconds, 2),
        "ended": not left,
        "said": [line for line in lines if line.startswith("error:")],
    }


def stop(run: Started) -> int:
    for pid in run.pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return run.wait()


def again(root: Path, spawned: bool) -> int:
    """Run to the end; process 1 leaves first, so that nobody is left behind."""
    (root / "said.txt").unlink(missing_ok=True)
    return start(root, spawned).wait()


def prepared(root: Path, whole: Path) -> Path:
    """A new runs folder with the images, and the latency, of the uninterrupted run."""
    shutil.copytree(whole / "data", root / "data")
    for folder in (whole / "stages").glob(f"{LATENCY}*"):
        shutil.copytree(folder, root / "stages" / folder.name)
    return root


def rows(trials: list[dict]) -> list[dict]:
    """One row for each of the two processes and of the phases."""
    table = []
    for met, number in ((False, 0), (False, 1), (True, 0), (True, 1)):
        own = [trial for trial in trials if (trial["met"], trial["killed"]) == (met, number)]
        if not own:
            continue
        when = "after they have met" if met else "before they have met"
        told = sum(len(trial["said"]) == 1 for trial in own)
        table.append(
            {
                "killed": f"process {number}, {when}",
                "kills": len(own),
                "the other ended by itself": sum(trial["ended"] for trial in own) if met else "",
                "seconds until then, at most": max(t["seconds"] for t in own) if met else "",
                "told in one line": told if met and number else "",
                "equal after the next start": sum(trial["equal"] for trial in own),
            }
        )
    return table


def kill(args: argparse.Namespace) -> list[dict]:
    draws, trials = random.Random(args.seed), []
    with tempfile.TemporaryDirectory() as scratch:
        whole, timed = Path(scratch) / "whole", Path(scratch) / "timed"
        if again(whole, args.spawned):
            raise SystemExit((whole / "said.txt").read_text())
        expected = results(whole)
        before = sum(os.times()[2:4])
        if again(prepared(timed, whole), args.spawned) or results(timed) != expected:
            raise SystemExit("two uninterrupted runs differ")
        length = (sum(os.times()[2:4]) - before) / 2
        print(f"uninterrupted: {length:.1f} s of computing, {len(expected)} results", flush=True)
        while len(trials) < args.kills:
            root = prepared(Path(scratch) / f"killed {draws.random()}", whole)
            moment, number = draws.uniform(0, length), draws.randrange(2)
            trial = one_kill(root, moment, number, args.spawned)
            if trial is not None:
                code = again(root, args.spawned)
                trial |= {"status": code, "equal": code == 0 and results(root) == expected}
                trials.append(trial)
                print(len(trials), json.dumps(trial), flush=True)
                if not trial["equal"]:
                    print((root / "said.txt").read_text(), flush=True)
                if args.log:
                    with args.log.open("a") as file:
                        file.write(json.dumps(trial) + "\n")
            shutil.rmtree(root)
    return trials


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--spawned", action="store_true", help="process 0 starts the other one")
    parser.add_argument("--log", type=Path, help="append a line for each kill")
    parser.add_argument("--logs", type=Path, nargs="*", help="publish these; kill nothing")
    parser.add_argument("--out", type=Path, help="append the record, one JSON line")
    args = parser.parse_args()
    if args.logs:
        trials = [json.loads(line) for log in args.logs for line in log.read_text().splitlines()]
    else:
        trials = kill(args)
    note = (
        "pretraining and distillation of 24 steps each and their evaluation on two gloo processes "
        f"of one CPU, a checkpoint every 0.2 s; one kill in each of {len(trials)} runs"
    )
    title = "Kills of one of two processes"
    if args.spawned:
        title += ", process 1 started by process 0"
    name = "kills_spawned" if args.spawned else "kills"
    publish(args.out, name, title, note=note, rows=rows(trials))


if __name__ == "__main__":
    main()
