"""Existing teachers, and several at once, through the whole chain on a few images."""

import json

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

import ssdistill
from ssdistill.chain.run import run
from ssdistill.errors import UserError
from ssdistill.experiment.reading import load_experiment

CONFIG = """
schema: 1
name: tiny
profile: smoke
data: {kind: npz, path: DATA}
student: {encoder: {name: resnet10t, stem: small, stem_stride: 2,
  args: {layers: [1, 1, 0, 0], channels: [8, 16, 16, 16], stem_type: deep, stem_width: 8}}}
control: null
distill: {steps: 2, batch_size: 16, losses: {a: {kind: simreg, depth: 1}}}
evaluate: {low_shot: null}
device: {precision: fp32, memory_format: channels_last, accelerator: cpu}
tracking: {wandb: disabled, log_every: 1}
"""
HEAD = "{hidden_dim: 16, output_dim: 8}"


@pytest.fixture
def config(tmp_path):
    """A tiny experiment on 60 + 40 random 16x16 images, without a teacher yet."""
    generator = np.random.default_rng(0)
    np.savez(
        tmp_path / "data.npz",
        train_images=generator.integers(0, 256, (60, 16, 16, 3), dtype=np.uint8),
        train_labels=np.arange(60) % 2,
        test_images=generator.integers(0, 256, (40, 16, 16, 3), dtype=np.uint8),
        test_labels=np.arange(40) % 2,
    )
    path = tmp_path / "tiny.yaml"
    path.write_text(CONFIG.replace("DATA", str(tmp_path / "data.npz")))
    return path


def moco_v2_file(path):
    """What a MoCo v2 repository leaves behind: DDP names, queue, projector in place of fc."""
    torch.manual_seed(0)
    net = torchvision.models.resnet18()
    net.fc = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 128))
    state = {f"module.encoder_q.{name}": value for name, value in net.state_dict().items()}
    state |= {f"module.encoder_k.{name}": value for name, value in net.state_dict().items()}
    torch.save({"epoch": 200, "state_dict": state | {"module.queue": torch.zeros(128, 8)}}, path)
    return net.eval()


def test_seed_distils_from_the_projector_in_a_moco_file(config, runs, tmp_path):
    original = moco_v2_file(tmp_path / "moco.pth.tar")
    overrides = [
        f"teacher={{kind: checkpoint, path: {tmp_path / 'moco.pth.tar'}, encoder: "
        "{name: resnet18, stem: native}}",
        "distill.losses={seed: {kind: seed, read: projection, queue: 32}}",
        "measure.latency=false",
    ]
    report = run(load_experiment(config, overrides)[0], runs)
    teacher = ssdistill.load(report.models["teacher"])
    teacher.project = True
    x_BCHW = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        expected = original((x_BCHW - teacher.mean) / teacher.std)
        assert torch.allclose(teacher(x_BCHW).projection_BP, expected, atol=1e-4)
    rows = {record["model"]: record["metrics"] for record in report.records}
    assert list(rows) == ["untrained", "teacher", "distilled"]
    assert rows["distilled"]["agree/cka"] < rows["teacher"]["agree/cka"]
    assert any("loaded projector 512-512-128" in notice for notice in report.notices)
    # Run again, nothing is done twice.
    before = sorted(p.stat().st_mtime_ns for p in runs.glob("stages/*/*/run.json"))
    run(load_experiment(config, overrides)[0], runs)
    assert sorted(p.stat().st_mtime_ns for p in runs.glob("stages/*/*/run.json")) == before


def test_a_finished_teacher_and_one_trained_here_teach_together(config, runs):
    first = [
        "teacher.encoder={name: resnet10t, stem_stride: 2, args: {layers: [1, 1, 0, 0], "
        "channels: [8, 16, 16, 16], stem_type: deep, stem_width: 8}}",
        f"pretrain={{kind: simclr, steps: 2, batch_size: 16, projector: {HEAD}}}",
        "distill=null",
    ]
    simclr = run(load_experiment(config, first)[0], runs)
    both = [
        f"teachers.old={{kind: run, path: {simclr.models['simclr']}}}",
        "teachers.new={encoder: {name: vit_tiny_patch16_224, args: {img_size: 16, patch_size: 4, "
        f"embed_dim: 32, depth: 1, num_heads: 2}}}}, pretrain: {{kind: byol, projector: {HEAD}, "
        "predictor: {hidden_dim: 16}}}",
        "pretrain={kind: simclr, steps: 2, batch_size: 16}",
        "distill.losses={a: {kind: unic}, b: {kind: mse, teacher: new}}",
        "distill.teacher_dropping=0.5",
        "compress=[{kind: prune, ratio: 0.3}, {kind: recover, steps: 1, batch_size: 16}, "
        "{kind: recover, steps: 1, batch_size: 16, target: original}]",
    ]
    report = run(load_experiment(config, both)[0], runs)
    rows = [record["model"] for record in report.records]
    assert rows[:4] == ["untrained", "teacher_old", "teacher_new", "distilled"]
    assert rows[4:] == ["pruned", "recovered", "recovered_2"]
    (stage,) = runs.glob("stages/distill-*/s0")
    logged = json.loads((stage / "metrics.jsonl").read_text().splitlines()[-1])
    losses = {name for name in logged if name.startswith("loss/")}
    assert losses == {"loss/total", "loss/a/old", "loss/a/new", "loss/b/new"}


def test_ways_to_pretrain_are_compared_in_the_same_time(config, runs):
    overrides = [
        "student=null",
        "distill=null",
        "teacher.encoder={name: resnet10t, stem_stride: 2, args: {layers: [1, 1, 0, 0], "
        "channels: [8, 16, 16, 16], stem_type: deep, stem_width: 8}}",
        f"pretrain={{kind: simclr, steps: 4, batch_size: 16, projector: {HEAD}, select: rankme}}",
        f"compare.byol={{budget: time, pretrain: {{kind: byol, projector: {HEAD}, "
        "predictor: {hidden_dim: 16}}}",
        f"compare.vicreg={{pretrain: {{kind: vicreg, projector: {HEAD}}}}}",
        f"compare.barlow={{pretrain: {{kind: barlow_twins, projector: {HEAD}}}}}",
        "tracking.online_probe=true",
    ]
    report = run(load_experiment(config, overrides)[0], runs)
    rows = {record["model"]: record["metrics"] for record in report.records}
    assert list(rows) == ["untrained", "simclr", "byol", "vicreg", "barlow"]
    assert rows["vicreg"]["train/steps"] == 4
    assert rows["byol"]["train/steps"] >= 1
    results, paired, rankings = report.tables
    assert {row[1] for row in paired.rows} == {"simclr"}
    assert {"effective rank", "alignment", "steps"} <= set(results.header)
    assert not any("CKA" in name for name in results.header)
    assert rankings.rows[0][0] == "collapse/effective_rank"
    assert "Label-free metrics vs. probes" in (report.folder / "report.html").read_text()
    (stage,) = {path.parent for path in runs.glob("stages/pretrain-*/s0/budget.json")}
    logged = json.loads((stage / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"probe/online/top1", "collapse/alignment", "select/effective_rank"} <= logged.keys()


def test_what_is_wrong_with_a_teacher_is_said_before_anything_is_trained(config, runs, tmp_path):
    moco_v2_file(tmp_path / "moco.pth.tar")
    wrong = [
        (
            "teachers={a: {kind: run, path: nowhere}, b: {kind: timm, name: resnet18}}",
            "teachers.a: .*nowhere",
        ),
        (f"teacher={{kind: checkpoint, path: {tmp_path / 'nothing.pth'}}}", "nothing.pth"),
        (
            f"teacher={{kind: checkpoint, path: {tmp_path / 'moco.pth.tar'}, "
            "encoder: {name: resnet34}}",
            "moco.pth.tar",
        ),
        ("teacher={kind: timm, name: resnet81}", "resnet81"),
    ]
    for override, named in wrong:
        with pytest.raises(UserError, match=named) as caught:
            run(load_experiment(config, [override])[0], runs)
        assert "\n" not in str(caught.value)
    assert not list(runs.glob("stages/*"))
