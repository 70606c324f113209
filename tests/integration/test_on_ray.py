"""Stages on a real Ray cluster of two nodes on this machine, one CPU each."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext, suppress
from pathlib import Path

import numpy as np
import pytest
from forked import run_forked

from ssdistill.chain.executors import Job
from ssdistill.chain.executors.on_ray import OnRay
from ssdistill.chain.plan import plan_stages
from ssdistill.chain.remote_runs import CACHE
from ssdistill.chain.run import run
from ssdistill.chain.stages import Identity
from ssdistill.chain.workspace import open_workspace
from ssdistill.commands.main import main
from ssdistill.errors import UserError
from ssdistill.experiment.reading import load_experiment
from ssdistill.train.progress import console

CONFIG = """
schema: 1
name: cluster
seeds: [0, 1]
data: {kind: npz, path: DATA}
teacher: {encoder: {name: resnet10t, stem: small, stem_stride: 2,
  args: {layers: [1, 1, 0, 0], channels: [8, 8, 8, 8], stem_type: deep, stem_width: 8}}}
pretrain: {kind: simclr, steps: 400, batch_size: 8}
evaluate: {label_free_images: 30, linear: {folds: 2}}
device: {precision: fp32, memory_format: contiguous, accelerator: cpu, threads: 1}
checkpoint_seconds: 0.1
tracking: {wandb: disabled}
"""
SECONDS = 300
NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cluster")
    random = np.random.default_rng(0)
    labels_N = np.arange(60) % 3
    images_NHWC = random.integers(0, 200, (60, 16, 16, 3)) + 25 * labels_N[:, None, None, None]
    sets = {
        f"{split}_{what}": values
        for split in ("train", "test")
        for what, values in {"images": images_NHWC.astype(np.uint8), "labels": labels_N}.items()
    }
    np.savez(folder / "data.npz", **sets)
    path = folder / "cluster.yaml"
    path.write_text(CONFIG.replace("DATA", str(folder / "data.npz")))
    return path


@pytest.fixture(scope="module")
def serial(config, tmp_path_factory):
    """Weights and table of a run in this process."""
    root = tmp_path_factory.mktemp("serial")
    experiment, _ = load_experiment(config)
    run(experiment, root)
    return weights(root)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        # What nodes keep of remote runs is not where this process keeps it.
        patch.setenv(CACHE, str(tmp_path_factory.mktemp("nodes")))
        # Ray's workers would wait for other tests on the same cores.
        patch.setenv("RAY_worker_niceness", "0")
        cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
        cluster.add_node(**NODE)
    yield cluster
    cluster.shutdown()


@pytest.fixture(scope="module")
def executor(cluster):
    """One for all tests: what it starts is started once."""
    with OnRay(cluster.address) as executor:
        yield executor


def weights(root: Path) -> dict[str, list]:
    """By folder of the stage, what is equal from run to run: weights and metrics."""
    found = {}
    for file in sorted(root.glob("stages/*/s*/run.json")):
        record = json.loads(file.read_text())
        timed = ("seconds", "time/")
        metrics = {k: v for k, v in record["metrics"].items() if not any(t in k for t in timed)}
        sha256 = [entry["sha256"] for entry in record["artifacts"].values()]
        found[str(file.parent.relative_to(root))] = [record["status"], metrics, sha256]
    return found


def tasks(label: str = "") -> list[int]:
    """Process ids of Ray's workers that have a task of that name."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        title = command_of(folder)
        if title.startswith("ray::[") and label in title:
            found.append(int(folder.name))
    return found


def command_of(folder: Path) -> str:
    """Command line of a process, by its folder; empty once it has ended."""
    try:
        return (folder / "cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def until(condition, seconds: float = SECONDS):
    """Wait for a value that is true."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return value


def trained(root: Path, seed: int) -> bool:
    """Whether that seed's training has a checkpoint."""
    return bool([*root.glob(f"stages/pretrain-*/s{seed}/checkpoint*")])


def begun(root: Path, seed: int) -> bool:
    """Whether that seed's training is in progress."""
    files = root.glob(f"stages/pretrain-*/s{seed}/metrics.jsonl")
    return any(file.stat().st_size and not (file.parent / "model").exists() for file in files)


def wait_for_both(root: Path, condition=trained) -> int:
    """Wait until both trainings are in progress; the first to be so is stopped meanwhile.

    Where only one node takes tasks for a minute, the other training is not waited for.

    Returns:
        how many are in progress.
    """

    def found() -> list[int]:
        seeds = [seed for seed in (0, 1) if condition(root, seed)]
        for seed in seeds:
            for pid in tasks(f"pretrain simclr, seed {seed}"):
                os.kill(pid, signal.SIGSTOP)
        return seeds

    until(found)
    with suppress(AssertionError):
        until(lambda: len(found()) == 2, seconds=60)
    count = len(found())
    for pid in tasks("pretrain"):
        os.kill(pid, signal.SIGCONT)
    return count


def test_a_failed_stage_fails_what_descends_from_it_and_no_other(config, executor, tmp_path):
    experiment, _ = load_experiment(config, ["pretrain.steps=3"])
    blocked = [s for s in planned(experiment, tmp_path) if s.kind == "pretrain" and s.seed == 1]
    place = blocked[0].folder(tmp_path)
    place.parent.mkdir(parents=True)
    place.touch()
    with console.capture() as said, pytest.raises(UserError) as failed:
        run(experiment, tmp_path, executor)
    text = str(failed.value)
    assert "pretrain simclr, seed 1: " in text and "found a file; move it away" in text
    assert "1 more were not run because of that" in text and "\n" not in text
    assert "evaluate simclr, seed 1: not run: [" in said.get()
    records = weights(tmp_path)
    assert {record[0] for record in records.values()} == {"finished"}
    assert sum(name.startswith("stages/evaluate") for name in records) == 3
    place.unlink()
    run(experiment, tmp_path, executor)
    assert len(weights(tmp_path)) == len(records) + 2


def test_stages_travel_where_nodes_share_no_folder(config, executor, tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE, str(tmp_path / "here"))
    experiment, _ = load_experiment(config, ["pretrain.steps=3", "seeds=[0]"])
    report = run(experiment, f"file://{tmp_path}/store", executor)
    (here,) = (tmp_path / "here").iterdir()
    assert weights(here) == weights(tmp_path / "store") and len(weights(here)) == 4
    assert (tmp_path / "store" / report.folder.name / "report.html").is_file()


def test_points_of_a_sweep_run_side_by_side_and_share_their_stages(
    config, executor, tmp_path, monkeypatch, capsys
):
    file = config.with_name("sweep.yaml")
    file.write_text(
        config.read_text()
        + """
sweep:
  search: grid
  maximize: collapse/effective_rank
  model: simclr
  parameters: {pretrain.optim.lr: [1.0e-3, 1.0e-2, 1.0e-1]}
"""
    )
    words = ["run", str(file), "pretrain.steps=4", "seeds=[0]", "--runs"]
    assert main([*words, str(tmp_path / "serial")]) == 0
    handed_over, finish = [], OnRay.finish

    def watched(self, jobs):
        handed_over.append([job.label for job in jobs])
        finish(self, jobs)

    monkeypatch.setattr(OnRay, "finish", watched)
    monkeypatch.setattr(
        "ssdistill.chain.executors.choice.executor_for", lambda *_: nullcontext(executor)
    )
    assert main([*words, str(tmp_path / "cluster"), "--on", "ray"]) == 0
    assert weights(tmp_path / "cluster") == weights(tmp_path / "serial")
    # Those of all points at once, the untrained network of the first one alone; then each point.
    together, *one_by_one = handed_over
    assert len(one_by_one) == 3 and len(together) == len(one_by_one[0]) * 3 - 4
    outcomes = [
        [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted(tmp_path.glob("*/sweeps/*/sweep.jsonl"))
    ]
    assert outcomes[0] == outcomes[1] and len(outcomes[0]) == 3


def test_a_killed_process_and_a_killed_node_change_nothing(
    config, cluster, executor, serial, tmp_path
):
    experiment, _ = load_experiment(config)

    def kill():
        wait_for_both(tmp_path)
        (lost,) = cluster.worker_nodes
        (raylet,) = lost.all_processes["raylet"]
        other, *_ = (pid for pid in tasks("pretrain") if parent(pid) != raylet.process.pid)
        os.kill(other, signal.SIGKILL)
        cluster.remove_node(lost, allow_graceful=False)

    killer = threading.Thread(target=kill)
    killer.start()
    report = run(experiment, tmp_path, executor)
    killer.join()
    cluster.add_node(**NODE)
    assert weights(tmp_path) == serial
    assert {row[0] for row in report.tables[0].rows} == {"untrained", "simclr"}
    resumed = [
        json.loads(f.read_text())["resumed"] for f in tmp_path.glob("stages/pre*/s*/run.json")
    ]
    assert min(resumed) >= 1


def test_a_stage_whose_processes_are_on_two_nodes(config, executor, tmp_path):
    changes = ["seeds=[0]", "evaluate=null", "pretrain.steps=20"]
    words = ["run", str(config), *changes, "--runs", str(tmp_path / "one")]
    (done,) = run_forked([[{"words": words}] * 2], os.environ)
    assert done.statuses == [0, 0], done.said
    experiment, _ = load_experiment(config, [*changes, "device.devices=2"])
    workspace = open_workspace(experiment, tmp_path / "two")
    (stage,) = (stage for stage in plan_stages(workspace) if stage.kind == "pretrain")
    job, seen = Job(stage, workspace, Identity.of(experiment), "pretrain"), []

    def look():
        seen[:] = until(lambda: len(found := stage_processes()) == 2 and map(node_of, found))

    watch = threading.Thread(target=look)
    watch.start()
    executor.finish([job])
    watch.join()
    assert len(set(seen)) == 2
    folder = str(stage.folder(tmp_path / "two").relative_to(tmp_path / "two"))
    assert weights(tmp_path / "two")[folder] == weights(tmp_path / "one")[folder]
    assert not (tmp_path / "two" / ".ray-train").exists() and not stage_processes()


def node_of(pid: int) -> int:
    """Process id of the raylet that a process's worker belongs to."""
    return parent(parent(pid))


def stage_processes() -> list[int]:
    """Process ids of what does a part of a stage."""
    return [
        int(folder.name)
        for folder in Path("/proc").glob("[0-9]*")
        if "\0--stage\0" in command_of(folder)
    ]


def test_ctrl_c_ends_all_tasks_and_the_next_run_resumes_them(config, cluster, serial, tmp_path):
    command = [sys.executable, "-m", "ssdistill", "run", str(config), "--runs", str(tmp_path)]
    with subprocess.Popen(
        [*command, "--on", cluster.address],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        count = wait_for_both(tmp_path, begun)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=180)
    assert process.returncode == 130, errors
    assert errors.endswith("Interrupted. Run the same command to resume.\n")
    trainings = [record[0] for name, record in weights(tmp_path).items() if "pretrain" in name]
    assert set(trainings) == {"interrupted"} and len(trainings) >= count
    until(lambda: not tasks(), seconds=10)
    run(load_experiment(config)[0], tmp_path)
    assert weights(tmp_path) == serial


PACKAGE = """
from torch import nn

from ssdistill.models.networks import network


@network("plain")
class Plain(nn.Module):
    def __init__(self, in_chans=3):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(in_chans, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU())

    def forward(self, x_BCHW):
        return self.layers(x_BCHW)
"""


def test_a_package_that_is_named_is_imported_where_stages_run(config, cluster, tmp_path):
    (tmp_path / "own_plain.py").write_text(PACKAGE)
    settings = ["pretrain.steps=3", "seeds=[0]", "evaluate=null", "teacher.encoder={name: plain}"]
    command = [sys.executable, "-m", "ssdistill", "run", str(config), *settings, "--runs", "runs"]
    done = subprocess.run(
        [*command, "--import", "own_plain", "--on", cluster.address],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (record,) = (tmp_path / "runs").glob("stages/pretrain-*/s0/run.json")
    content = json.loads(record.read_text())
    assert content["status"] == "finished" and list(content["config"]["plugins"]) == ["own_plain"]


def parent(pid: int) -> int:
    """Process id of what started a process."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def planned(experiment, root):
    return plan_stages(open_workspace(experiment, root))
