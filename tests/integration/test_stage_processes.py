"""One stage in two processes, as a task of a cluster starts them."""

import json
import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from ssdistill.chain.executors import stage_processes
from ssdistill.chain.executors.stage_processes import LostProcess, do_in_processes, run_stage
from ssdistill.chain.plan import plan_stages
from ssdistill.chain.workspace import open_workspace
from ssdistill.errors import UserError
from ssdistill.experiment.reading import load_experiment

CONFIG = """
schema: 1
name: processes
data: {kind: npz, path: DATA}
teacher: {encoder: {name: resnet10t, stem: small, stem_stride: 2,
  args: {layers: [1, 1, 0, 0], channels: [8, 8, 8, 8], stem_type: deep, stem_width: 8}}}
pretrain: {kind: simclr, steps: 100, batch_size: 8}
evaluate: null
device: {precision: fp32, memory_format: contiguous, accelerator: cpu, devices: 2}
checkpoint_seconds: 0
tracking: {wandb: disabled}
"""


@pytest.fixture
def experiment(tmp_path):
    images_NHWC = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", train_images=images_NHWC, test_images=images_NHWC)
    (tmp_path / "x.yaml").write_text(CONFIG.replace("DATA", str(tmp_path / "data.npz")))
    return load_experiment(tmp_path / "x.yaml")[0]


def processes_of(stage, variable: str = "") -> list[int]:
    """Processes that do a stage, those that have something in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            of_stage = stage.digest.encode() in (folder / "cmdline").read_bytes()
            if of_stage and variable.encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
    return found


def test_a_stage_whose_process_is_killed_can_be_started_again(experiment, tmp_path):
    root = tmp_path / "runs"
    stages = plan_stages(open_workspace(experiment, root))
    (stage,) = (stage for stage in stages if stage.kind == "pretrain")
    place, said = stage.folder(root) / "checkpoint.pt", []

    def kill():
        while not place.exists():
            time.sleep(0.02)
        os.kill(processes_of(stage, "LOCAL_RANK=1")[0], signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    with pytest.raises(LostProcess, match="run the same command again"):
        do_in_processes(stage, experiment, root, 1, said.append)
    # The other one may have noticed by itself, and have said so in the record.
    assert stage.status(root) in ("running", "failed")
    do_in_processes(stage, experiment, root, 1, said.append)
    record = stage.written(root)
    assert (record.status, record.resumed, record.metrics["train/steps"]) == ("finished", 1, 100)
    assert not processes_of(stage)


def test_another_plan_is_refused(experiment, tmp_path, monkeypatch):
    monkeypatch.setattr(stage_processes, "_end_with", lambda parent: None)
    with pytest.raises(UserError, match="plans other stages"):
        run_stage(experiment, tmp_path / "runs", f"{'0' * 64}/0")


def test_processes_extend_a_training_as_one_does(experiment, tmp_path):
    def trained(steps, devices, *changes):
        words = [f"pretrain.steps={steps}", f"device.devices={devices}", "keep_checkpoints=true"]
        words += ["pretrain.optim={kind: sgd, lr: 0.1, schedule: constant, warmup: 0}", *changes]
        config = load_experiment(tmp_path / "x.yaml", words)[0]
        root = tmp_path / f"of {devices}"
        (stage,) = (s for s in plan_stages(open_workspace(config, root)) if s.kind == "pretrain")
        do_in_processes(stage, config, root, 1, print)
        lines = (stage.folder(root) / "metrics.jsonl").read_text().splitlines()
        losses = {(line := json.loads(text))["step"]: line["loss/total"] for text in lines}
        return stage.folder(root).parent, losses

    of = {}
    for devices in (2, 1):
        short, before = trained(4, devices)
        of[devices] = trained(8, devices, f"pretrain.extend={short}")[1]
        assert of[devices].items() > before.items()
    assert of[2].keys() == of[1].keys() and of[2] == pytest.approx(of[1], rel=1e-3)
