"""An experiment inside a W&B sweep, started as the agent starts it, without a server."""

import json
import sys
import time
from pathlib import Path

import pytest
import yaml
from test_tracker_wandb import (
    DIGEST,
    header_of,
    histories,
    no_hang,  # noqa: F401
    no_key,  # noqa: F401
    offline_records,
)

from ssdistill.experiment.reading import load_experiment
from ssdistill.record.run import Run, load_run
from ssdistill.record.session import session
from ssdistill.record.tracker import Tracker, TrackingSettings
from ssdistill.record.wandb_logger import forget_wandb

SWEEP = Path(__file__).parents[2] / "experiments" / "sweeps" / "quickstart.yaml"
TINY = """
schema: 1
name: tiny
profile: smoke
data: digits
teacher: {encoder: {name: resnet10t, stem_stride: 2, args:
  {layers: [1, 1, 0, 0], channels: [8, 16, 16, 16], stem_type: deep, stem_width: 8}}}
pretrain: {kind: simclr, steps: 3, batch_size: 16}
evaluate: null
device: {precision: fp32, memory_format: contiguous}
tracking: {log_every: 1}
"""
"""One training and nothing else, so that it takes seconds."""


@pytest.fixture(autouse=True)
def agent_environment(no_key, monkeypatch, tmp_path):  # noqa: F811
    """What an agent sets; and W&B looks at its environment again."""
    variables = {
        "WANDB_SWEEP_ID": "sw33p",
        "WANDB_RUN_ID": "r1",
        "WANDB_PROJECT": "theirs",
        "WANDB_ENTITY": "lab",
        "WANDB_DIR": str(tmp_path),
        "WANDB_MODE": "offline",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    yield
    monkeypatch.undo()
    forget_wandb()


def summary_of(records):
    summary = {}
    for r in records:
        if r.WhichOneof("record_type") == "summary":
            for item in r.summary.update:
                key = item.key or "/".join(item.nested_key)
                summary[key] = json.loads(item.value_json)
    return summary


def run_stage(folder, stage, role, seed=0, steps=0, **metrics):
    run = Run(folder / f"{stage}-{role}-{seed}", stage=stage, role=role, digest=DIGEST, seed=seed)
    with Tracker(run, TrackingSettings(), tags=["digits"]) as tracker:
        for step in range(steps):
            tracker.log(step, {"loss/total": float(seed * 10 + step)})
        tracker.finish({name.replace("_", "/"): value for name, value in metrics.items()})


def run_experiment(folder, seeds=(0,)):
    with session({"name": "tiny", "distill": {"steps": 4}}, ["digits"], len(seeds)):
        for seed in seeds:
            run_stage(folder, "pretrain", "teacher", seed, steps=3)
            run_stage(folder, "distill", "distilled", seed, steps=4)
            run_stage(folder, "evaluate", "distilled", seed, agree_cka=0.5 + seed)
        run_stage(folder, "report", "report", steps=1, distilled_agree_cka=0.5)


def test_an_experiment_is_one_run_whose_metrics_carry_the_rows_name(tmp_path):
    run_experiment(tmp_path)
    (records,) = offline_records(tmp_path)
    header = header_of(records)
    assert (header.run_id, header.sweep_id) == ("r1", "sw33p")
    assert (header.project, header.entity, header.job_type) == ("theirs", "lab", "experiment")
    config = {item.key: json.loads(item.value_json) for item in header.config.update}
    assert (config["name"], config["distill"]) == ("tiny", {"steps": 4})
    lines = histories(records)
    for row, count in (("teacher", 3), ("distilled", 4)):
        named = [line for line in lines if f"{row}/loss/total" in line]
        assert [line[f"{row}/step"] for line in named] == list(range(count))
    assert not any(name.startswith("loss/") for line in lines for name in line)
    axes = {r.metric.glob_name: r.metric.step_metric for r in records if r.HasField("metric")}
    assert axes["distilled/*"] == "distilled/step"
    assert summary_of(records)["distilled/agree/cka"] == 0.5
    assert any(line.get("distilled/agree/cka") == 0.5 for line in lines)


def test_seeds_are_told_apart_and_their_mean_is_the_goal(tmp_path):
    run_experiment(tmp_path, seeds=(0, 1))
    (records,) = offline_records(tmp_path)
    values = [line.get("distilled/s1/loss/total") for line in histories(records)]
    assert [value for value in values if value is not None] == [10.0, 11.0, 12.0, 13.0]
    summary = summary_of(records)
    assert (summary["distilled/s0/agree/cka"], summary["distilled/s1/agree/cka"]) == (0.5, 1.5)
    assert summary["distilled/agree/cka"] == 0.5


def test_a_second_experiment_in_one_process_is_a_run_of_its_own(tmp_path, monkeypatch):
    run_experiment(tmp_path / "a")
    # As an agent does that calls a function for each run.
    monkeypatch.setenv("WANDB_RUN_ID", "r2")
    run_experiment(tmp_path / "b")
    assert [header_of(r).run_id for r in offline_records(tmp_path)] == ["r1", "r2"]


def test_an_experiment_that_fails_ends_its_run_as_failed(tmp_path):
    with pytest.raises(ValueError, match="lost"), session({}, (), num_seeds=1):
        run_stage(tmp_path, "pretrain", "teacher", steps=1)
        raise ValueError("lost")
    (records,) = offline_records(tmp_path)
    assert [r.exit.exit_code for r in records if r.HasField("exit")] == [1]


def test_a_run_that_the_caller_has_opened_is_used_and_left_open(tmp_path, monkeypatch):
    import wandb

    for name in ("WANDB_SWEEP_ID", "WANDB_RUN_ID"):
        monkeypatch.delenv(name)
    forget_wandb()
    with wandb.init(project="own", dir=tmp_path, mode="offline") as own:
        run_experiment(tmp_path)
        assert wandb.run is own
        own.log({"after": 1.0})
    (records,) = offline_records(tmp_path)
    lines = histories(records)
    assert any("distilled/loss/total" in line for line in lines) and lines[-1]["after"] == 1.0


def test_the_shipped_sweep_fits_the_quickstart():
    sweep = yaml.safe_load(SWEEP.read_text())
    assert sweep["command"][-1] == "${args}"
    values = {
        name: parameter.get("value", parameter.get("min"))
        for name, parameter in sweep["parameters"].items()
    }
    words = [f"--{name}={value}" for name, value in values.items()]
    experiment, notices = load_experiment(sweep["command"][-2], words)
    assert notices == []
    row, _, metric = sweep["metric"]["name"].partition("/")
    assert (row, metric) == ("distilled", "agree/cka") and experiment.tracking.agreement


def test_the_agent_starts_an_experiment(tmp_path, monkeypatch):
    """Its own code builds environment and command, and starts a process: most of the time here."""
    from wandb.wandb_agent import Agent

    config = tmp_path / "tiny.yaml"
    config.write_text(TINY)
    # The agent's processes are others' children, of W&B's service, too.
    monkeypatch.delenv("WANDB_SERVICE", raising=False)
    agent = Agent(api=None, queue=None, sweep_id="sw33p")
    program = [sys.executable, "-m", "ssdistill.commands.main", "run", str(config)]
    agent._sweep_command = ["${env}", *program, "--runs", str(tmp_path / "runs"), "${args}"]
    values = {"pretrain.steps": 4, "pretrain.optim.lr": 1e-03, "control": None, "seeds": [3]}
    agent._command_run(
        {
            "type": "run",
            "run_id": "r9",
            "program": "ssdistill",
            "args": {name: {"value": value} for name, value in values.items()},
        }
    )
    process = agent._run_processes["r9"]
    deadline = time.monotonic() + 100
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert process.poll() == 0
    (records,) = offline_records(tmp_path)
    header = header_of(records)
    assert (header.run_id, header.sweep_id, header.project) == ("r9", "sw33p", "theirs")
    lines = [line for line in histories(records) if "simclr/loss/total" in line]
    assert [line["simclr/step"] for line in lines] == [0, 1, 2, 3]
    assert "simclr/collapse/std" in summary_of(records)
    (folder,) = (tmp_path / "runs").glob("stages/pretrain-*/s3")
    record = load_run(folder)
    assert (record.kind, record.config["method"]["optim"]["lr"]) == ("simclr", 0.001)
    assert not list((tmp_path / "runs").rglob("wandb"))
