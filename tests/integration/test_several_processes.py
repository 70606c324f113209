"""An experiment run by two processes: the whole command, as users start it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from forked import Outcome, launch, run_forked

from ssdistill.chain.process_group import SET_HERE
from ssdistill.chain.processes import LAUNCHERS

NETWORK = (
    "{name: resnet10t, stem: small, stem_stride: 2, args: {layers: [1, 1, 0, 0], "
    "channels: [8, 16, 16, 16], stem_type: deep, stem_width: 8}}"
)
SETTINGS = (
    f"teacher.encoder={NETWORK}",
    f"student.encoder={NETWORK}",
    "pretrain.steps=30",
    "pretrain.batch_size=32",
    "distill.steps=12",
    "distill.batch_size=32",
    "control=null",
    "compress=[]",
    "evaluate=null",
    "measure.latency=false",
    "tracking.log_every=1",
    "device.accelerator=cpu",
    "device.threads=1",
    "device.precision=fp32",
    "device.memory_format=contiguous",
)
WORDS = ("run", "quickstart", *SETTINGS)
COMMAND = (sys.executable, "-m", "ssdistill", *WORDS)
LIMIT = 400
WRONG = {
    "uneven batch": ({}, ("device.devices=3",), "not divisible among 3 processes"),
    "nodes alone": ({}, ("device.num_nodes=2",), "set device.devices, too"),
    "mpirun": (
        {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"},
        (),
        "use torchrun or srun",
    ),
    "torchrun of another size": (
        {"WORLD_SIZE": "2", "RANK": "0"},
        ("device.devices=3",),
        "3 processes, but torchrun started 2; remove device.devices",
    ),
}


def environment() -> dict[str, str]:
    names = {name for _, size, ranks in LAUNCHERS for name in (size, *ranks)} | set(SET_HERE)
    return {k: v for k, v in os.environ.items() if k not in names} | {"WANDB_MODE": "disabled"}


def run(root: Path, *words: str) -> subprocess.CompletedProcess:
    command = [*COMMAND, *words, "--runs", str(root)]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=LIMIT)


def weights(root: Path) -> dict[str, str]:
    """The sha256 of the weights that each stage made, by the stage's kind."""
    records = [json.loads(path.read_text()) for path in root.glob("stages/*/s0/run.json")]
    assert {record["status"] for record in records} == {"finished"}
    artifacts = {r["stage"]: list(r["artifacts"].values()) for r in records}
    return {stage: made[0]["sha256"] for stage, made in artifacts.items() if made}


def losses(root: Path, kind: str) -> list[float]:
    (file,) = root.glob(f"stages/{kind}-*/s0/metrics.jsonl")
    return [json.loads(line)["loss/total"] for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def forked(tmp_path_factory) -> tuple[Path, dict[str, tuple[Path, Outcome]]]:
    """The run of one process, and by name the folders and outcomes of what contradicts itself."""
    alone, names = tmp_path_factory.mktemp("alone"), ["alone", *WRONG]
    folders = [alone, *(tmp_path_factory.mktemp("wrong") for _ in WRONG)]
    cases = [[{"words": [*WORDS, "--runs", str(alone)]}]]
    for folder, (variables, words, _) in zip(folders[1:], WRONG.values(), strict=True):
        words = [*WORDS, *words, "--runs", str(folder)]
        cases.append([{"words": words, "variables": variables}])
    done = zip(folders, run_forked(cases, environment()), strict=True)
    outcomes = dict(zip(names, done, strict=True))
    _, done = outcomes.pop("alone")
    assert done.statuses == [0], done.said
    return alone, outcomes


@pytest.fixture(scope="module")
def alone(forked) -> Path:
    return forked[0]


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("both")
    done = run(root, "device.devices=2")
    assert done.returncode == 0, done.stderr
    # What one process says is said once.
    assert done.stderr.count("stages,") == 1 and done.stdout.count("report.html") == 1
    assert "Warning" not in done.stderr and "rank" not in done.stderr
    return root


def test_two_processes_train_as_one(alone, both):
    assert weights(alone).keys() == weights(both).keys()
    for kind in ("pretrain", "distill"):
        together, by_itself = losses(both, kind), losses(alone, kind)
        # Adam makes much of rounding errors in small gradients; a student has another teacher then.
        assert together == pytest.approx(by_itself, rel=1e-2)
    first_steps = losses(alone, "pretrain")[:5]
    assert losses(both, "pretrain")[:5] == pytest.approx(first_steps, rel=1e-5)


def test_torchrun_starts_what_devices_starts(both, tmp_path):
    words = [*WORDS, "--runs", str(tmp_path)]
    (done,) = run_forked([[{"words": words}] * 2], environment())
    assert done.statuses == [0, 0], done.said
    assert weights(tmp_path) == weights(both)


def test_kills_of_either_process_and_ctrl_c_end_both_and_the_next_start_resumes(both, tmp_path):
    for blow in (0, 1, "Ctrl-C"):
        process = _in_training(tmp_path)
        pids = [process.pid, *_children(process.pid)]
        began = time.monotonic()
        if blow == "Ctrl-C":  # as a terminal does, to all processes of the command
            os.killpg(process.pid, signal.SIGINT)
        else:
            os.kill(pids[blow], signal.SIGKILL)
        _, said = process.communicate(timeout=LIMIT)
        while any(_alive(pid) for pid in pids):
            assert time.monotonic() - began < 60
            time.sleep(0.1)
        if blow == 1:
            assert process.returncode == 1
            assert "error: process 1 was killed (signal 9) during" in said
            assert "pretrain teacher, seed 0" in said and said.count("error:") == 1
        elif blow == "Ctrl-C":
            assert process.returncode == 130, said
            assert said.count("Interrupted.") == 1
            assert "error" not in said and "Traceback" not in said
    # Whoever starts the processes then.
    (done,) = run_forked([[{"words": [*WORDS, "--runs", str(tmp_path)]}] * 2], environment())
    assert done.statuses == [0, 0], done.said
    assert weights(tmp_path) == weights(both)


def test_a_process_whose_first_one_is_lost_says_no_more_than_that(tmp_path):
    words = [*WORDS, "checkpoint_seconds=0.01", "--runs", str(tmp_path)]
    first, second = launch([{"words": words}] * 2, environment())
    deadline = time.monotonic() + LIMIT
    while not _checkpoints(tmp_path):
        assert time.monotonic() < deadline and first.poll() is None
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    _, said = second.communicate(120)
    assert second.returncode == 1
    assert "Traceback" not in said and "internal error" not in said
    assert not list(tmp_path.glob("crash-*"))


def _in_training(root: Path) -> subprocess.Popen:
    """Two processes that have written a checkpoint of the first training."""
    before = _checkpoints(root)
    words = ("device.devices=2", "checkpoint_seconds=0.01", "--runs", str(root))
    process = subprocess.Popen(
        [*COMMAND, *words],
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + LIMIT
    while _checkpoints(root) == before:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    return process


def _checkpoints(root: Path) -> list[int]:
    files = root.glob("stages/pretrain-*/s0/checkpoint.pt")
    return [file.stat().st_mtime_ns for file in files]


def _children(pid: int) -> list[int]:
    """Processes of the same command that this one started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(c) for c in children if b"quickstart" in Path(f"/proc/{c}/cmdline").read_bytes()]


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("name", WRONG)
def test_contradictions_are_refused_before_anything_starts(name, forked):
    folder, done = forked[1][name]
    assert done.statuses == [2]
    assert WRONG[name][-1] in done.said and "Traceback" not in done.said
    assert not (folder / "stages").exists()
