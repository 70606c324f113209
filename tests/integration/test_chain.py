"""The whole chain on a few images: its outputs, its inputs, and what survives a kill."""

import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import Command
from PIL import Image

import ssdistill
from ssdistill.chain.stages import Stage
from ssdistill.data import array_split
from ssdistill.errors import UserError

CONFIG = """
schema: 1
name: tiny
profile: smoke
data: {kind: npz, path: DATA}
teacher: {encoder: &net {name: resnet10t, stem: small, stem_stride: 2,
  args: {layers: [1, 1, 0, 0], channels: [16, 32, 32, 32], stem_type: deep, stem_width: 8}}}
student: {encoder: *net}
pretrain: {kind: simclr, steps: 3, batch_size: 16}
control: {budgets: [steps]}
distill:
  steps: 3
  batch_size: 16
  losses:
    feature: {kind: simreg, depth: 2}
    contrastive: {kind: infonce, queue: 32, weight: 0.5}
compress:
  - {kind: prune, ratio: 0.5, round_to: 8}
  - {kind: recover, steps: 2, batch_size: 16}
  - {kind: quantize, calibration_images: 16, check_images: 16, min_cosine: 0.5}
evaluate: {pixels: true, low_shot: {labels_per_class: 2, draws: 2}}
device: {precision: fp32, memory_format: channels_last, accelerator: cpu}
tracking: {wandb: disabled, log_every: 1}
checkpoint_seconds: 0
"""
ROLES = ("pixels", "untrained", "teacher", "control", "control_time", "control_total", "distilled")
COMPRESSED = ("pruned", "recovered", "int8")


def write_config(folder: Path, **changes: str) -> Path:
    """A tiny experiment on 60 + 40 random 16x16 images of two classes."""
    generator = np.random.default_rng(0)
    data = folder / "data.npz"
    np.savez(
        data,
        train_images=generator.integers(0, 256, (60, 16, 16, 3), dtype=np.uint8),
        train_labels=np.arange(60) % 2,
        test_images=generator.integers(0, 256, (40, 16, 16, 3), dtype=np.uint8),
        test_labels=np.arange(40) % 2,
    )
    text = CONFIG.replace("DATA", str(data))
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    path = folder / "tiny.yaml"
    path.write_text(text)
    return path


def weights(root: Path, kind: str) -> dict[str, str]:
    """sha256 of every model a kind of stage made, by stage and seed."""
    return {
        f"{path.parent.name}/{path.name}": json.loads((path / "model/model.json").read_text())[
            "sha256"
        ]
        for path in sorted((root / "stages").glob(f"{kind}-*/s*"))
    }


def test_one_run_leaves_models_records_and_a_page_and_a_second_does_nothing(tmp_path):
    config = write_config(tmp_path)
    root = tmp_path / "runs"
    overrides = ("seeds=[1]", "pretrain.seed=0", "control.budgets=[steps,time,total]")
    report = ssdistill.run(config, *overrides, root=root)

    rows = {row[0] for row in report.tables[0].rows}
    assert rows == {*ROLES, *COMPRESSED}
    metrics = {r["model"]: r["metrics"] for r in report.records if r["seed"] == 1}
    assert metrics["pruned"]["compress/params"] < metrics["distilled"]["compress/params"]
    assert metrics["pruned"]["compress/macs"] < metrics["distilled"]["compress/macs"]
    assert metrics["int8"]["compress/bytes"] < metrics["recovered"]["compress/bytes"]
    teacher = next(r for r in report.records if r["model"] == "teacher")
    assert teacher["metrics"]["agree/cka"] == pytest.approx(1, abs=1e-6)
    assert metrics["control"]["train/steps"] == metrics["distilled"]["train/steps"] == 3
    assert {"report.html", "run.json", "metrics.jsonl", "records.jsonl"} <= {
        path.name for path in report.folder.iterdir()
    }
    parents = {r["model"]: r["parent"] for r in report.records if "parent" in r}
    assert [(model, parent["model"]) for model, parent in parents.items()] == [
        ("pruned", "distilled"),
        ("recovered", "pruned"),
        ("int8", "recovered"),
    ]
    assert {test["protocol"] for test in parents["int8"]["paired"]} == {"knn", "linear"}
    html = (report.folder / "report.html").read_text()
    for role in ("teacher", "distilled", "int8"):
        assert f"{role}, linear" in html  # a matrix of confusions
    assert [r["seed"] for r in report.records if r["model"] == "teacher"] == [0]
    assert [r["seed"] for r in report.records if r["model"] == "distilled"] == [1]

    before = {path: path.stat().st_mtime_ns for path in (root / "stages").rglob("model.*")}
    again = ssdistill.run(config, *overrides, root=root)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert [r["metrics"] for r in again.records] == [r["metrics"] for r in report.records]

    encoder = ssdistill.load(next((root / "stages").glob("compress-*/s1/model/model.onnx")))
    assert encoder(torch.rand(3, 3, 16, 16)).embedding_BD.shape == (3, 32)


def test_no_label_is_read_before_the_probes(tmp_path, monkeypatch):
    def refuse(self):
        raise AssertionError("a label was read")

    monkeypatch.setattr(array_split.ArraySplit, "labels", refuse)
    config = write_config(tmp_path)
    untimed = ("control=null", "measure.latency=false")
    report = ssdistill.run(config, "evaluate=null", *untimed, root=tmp_path / "runs")
    assert "probe/linear/top1" not in report.records[0]["metrics"]
    assert "collapse/effective_rank" in report.records[0]["metrics"]
    with pytest.raises(AssertionError, match="a label was read"):
        ssdistill.run(config, *untimed, root=tmp_path / "runs")


def test_a_flat_folder_stops_before_the_probes_and_shows_the_label_free_metrics(tmp_path, capsys):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    generator = np.random.default_rng(1)
    for number in range(60):
        pixels = generator.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(pictures / f"{number}.png")
    overrides = (
        "data.kind=folder",
        f"data.path={pictures}",
        "data.image_size=16",
        "control=null",
        "measure.latency=false",
    )
    report = ssdistill.run(write_config(tmp_path), *overrides, root=tmp_path / "runs")
    assert "no labels" in capsys.readouterr().err
    assert not any(name.startswith("probe/") for r in report.records for name in r["metrics"])
    assert all("agree/cka" in r["metrics"] for r in report.records)


def test_a_step_that_its_gate_leaves_out_changes_nothing_and_is_named(tmp_path):
    gate = "{kind: quantize, calibration_images: 16, check_images: 16, min_cosine: 0, min_cka: 0, "
    gate += "gate: {bytes: 0.01, otherwise: keep}}"
    overrides = ("distill=null", "evaluate=null", "measure.latency=false")
    report = ssdistill.run(
        write_config(tmp_path), *overrides, f"compress=[{gate}]", root=tmp_path / "runs"
    )
    assert any("int8: the step was skipped by its gate" in notice for notice in report.notices)
    images_BCHW = torch.rand(2, 3, 16, 16)
    dense, kept = (ssdistill.load(report.models[role]) for role in ("simclr", "int8"))
    with torch.no_grad():
        pair = [encoder(images_BCHW).embedding_BD for encoder in (dense, kept)]
    assert torch.equal(*pair)
    with pytest.raises(
        UserError, match=r"quantize \(int8\) was rejected by its gate: bytes ratio 0\.\d+ exceeds"
    ):
        ssdistill.run(
            tmp_path / "tiny.yaml",
            *overrides,
            f"compress=[{gate.replace('keep', 'refuse')}]",
            root=tmp_path / "runs",
        )


def test_byol_teaches_the_students_of_two_seeds(tmp_path):
    overrides = ("pretrain.kind=byol", "compress=[]", "control=null", "evaluate=null")
    overrides += ("measure.latency=false", "seeds=[0,1]", "pretrain.seed=0")
    report = ssdistill.run(write_config(tmp_path), *overrides, root=tmp_path / "runs")
    assert {r["model"] for r in report.records} == {"untrained", "teacher", "distilled"}
    # The teacher's seed is fixed: both seeds share one, which is no spread of nothing.
    assert [r["seed"] for r in report.records if r["model"] == "teacher"] == [0]
    assert [r["seed"] for r in report.records if r["model"] == "distilled"] == [0, 1]


def test_a_checkpoint_of_another_architecture_is_refused_by_name(tmp_path):
    config = write_config(tmp_path)
    root = tmp_path / "runs"
    ssdistill.run(config, "distill=null", "compress=[]", "evaluate=null", root=root)
    folder = next((root / "stages").glob("pretrain-*/s0"))
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(record | {"status": "interrupted", "checksum": ""}))
    torch.save(
        {"task": {"x": torch.zeros(1)}, "optimizer": {}, "random": {}, "step": 1, "durations": []},
        folder / "checkpoint.pt",
    )
    with pytest.raises(UserError, match=r"checkpoint\.pt: does not fit this network"):
        ssdistill.run(config, "distill=null", "compress=[]", "evaluate=null", root=root)


def start(config: Path, root: Path) -> Command:
    overrides = ["pretrain.steps=30", "distill=null", "compress=[]", "evaluate=null"]
    overrides.append("device.threads=1")
    return Command(["run", config, "--runs", root, *overrides])


def wait_for_checkpoint(root: Path, process: Command) -> None:
    deadline = time.monotonic() + 300
    while not list(root.glob("stages/pretrain-*/s0/checkpoint.pt")):
        assert process.poll() is None, process.communicate(1)
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, Path]:
    """A config, and the folder of its run, which nobody has cut."""
    folder = tmp_path_factory.mktemp("whole")
    config = write_config(folder)
    process = start(config, folder / "runs")
    _, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors
    return config, folder / "runs"


@pytest.mark.parametrize(("blow", "status"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_a_run_that_is_cut_goes_on_to_the_same_weights(whole, tmp_path, blow, status):
    config, root = whole
    cut = start(config, tmp_path / "cut")
    wait_for_checkpoint(tmp_path / "cut", cut)
    cut.send_signal(blow)
    _, errors = cut.communicate(timeout=300)
    assert cut.returncode == status
    assert "Traceback" not in errors
    assert weights(tmp_path / "cut", "initialize")
    assert not list((tmp_path / "cut").glob("stages/pretrain-*/s0/model/model.json"))

    resumed = start(config, tmp_path / "cut")
    _, errors = resumed.communicate(timeout=400)
    assert resumed.returncode == 0, errors
    assert weights(tmp_path / "cut", "pretrain") == weights(root, "pretrain")
    steps = [
        json.loads(line)["step"]
        for line in next((tmp_path / "cut").glob("stages/pretrain-*/s0/metrics.jsonl"))
        .read_text()
        .splitlines()
    ]
    assert steps == list(range(30))


def test_digests_do_not_know_the_seed_but_know_the_parents():
    parent = Stage("teacher", "pretrain", {"steps": 1}, "data", 0)
    child = Stage("distilled", "distill", {}, "data", 1, {"teacher": parent})
    other = Stage("distilled", "distill", {}, "data", 2, {"teacher": parent})
    changed = Stage("teacher", "pretrain", {"steps": 2}, "data", 0)
    assert child.digest == other.digest
    assert child.digest != Stage("distilled", "distill", {}, "data", 1, {"teacher": changed}).digest
