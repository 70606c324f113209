"""Damage in a finished run: repeating the command recomputes what is damaged, and says so."""

import importlib.util
import json
import shutil
from contextlib import chdir
from pathlib import Path

import pytest

import ssdistill
from ssdistill.commands.main import main

PROGRAM = Path(__file__).resolve().parents[2] / "experiments" / "robustness" / "tiny.py"
SPEC = importlib.util.spec_from_file_location("tiny_experiment", PROGRAM)
tiny = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(tiny)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Config and runs folder of the tiny experiment, run with a relative path as users do."""
    folder = tmp_path_factory.mktemp("finished")
    config = tiny.write_experiment(folder)
    with chdir(folder):
        ssdistill.run(config, root="runs")
    return config, folder / "runs"


def stage_of(root, kind, role):
    for path in (root / "stages").glob(f"{kind}-*/s0"):
        if json.loads((path / "run.json").read_text())["role"] == role:
            return path
    raise AssertionError(f"no {kind} {role}")


def cut(path):
    path.write_bytes(path.read_bytes()[:-9])


def brighten(path):
    content = json.loads(path.read_text())
    content["spec"]["mean"] = [0.9, 0.9, 0.9]
    path.write_text(json.dumps(content))


DAMAGES = {
    "another mean": ("distill", "distilled", "model/model.json", brighten),
    "no weights": ("distill", "distilled", "model/model.safetensors", Path.unlink),
    "answers of zero bytes": ("evaluate", "distilled", "answers.npz", lambda p: p.write_bytes(b"")),
    "no features": ("evaluate", "teacher", "gauged_features.npy", Path.unlink),
    "no row": ("latency", "latency", "latency.json", lambda p: p.write_text('{"models": {}}')),
    "half a model": ("pretrain", "teacher", "model/model.safetensors", cut),
    "no description": ("compress", "pruned", "model/model.json", Path.unlink),
    "half a record": ("distill", "distilled", "run.json", cut),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_stage_is_made_anew_and_nothing_is_lost(finished, tmp_path, capfd, name):
    config, root = finished
    root = Path(shutil.copytree(root, tmp_path / "runs"))
    expected = tiny.results(root)
    kind, role, file, damage = DAMAGES[name]
    stage = stage_of(root, kind, role)
    damage(stage / file)
    intact = tiny.contents(root / "stages")
    assert main(["run", str(config), "--runs", str(root)]) == 0
    err = capfd.readouterr().err
    assert f"the old folder is now {stage.with_name('damaged-s0-1')}" in err
    assert str(stage) in err and "Traceback" not in err
    assert tiny.results(root) == expected
    assert intact <= tiny.contents(root)


@pytest.mark.parametrize(
    ("kind", "role", "file", "said"),
    [
        ("distill", "distilled", "views.npy", "no views in the report"),
        ("pretrain", "teacher", "metrics.jsonl", "no curves for pretrain-"),
    ],
)
def test_no_training_is_repeated_for_a_picture(finished, tmp_path, capfd, kind, role, file, said):
    config, root = finished
    root = Path(shutil.copytree(root, tmp_path / "runs"))
    stage = stage_of(root, kind, role)
    (stage / file).write_text("text\ntext\n")
    assert main(["run", str(config), "--runs", str(root)]) == 0
    assert said in capfd.readouterr().err
    assert (stage / file).read_text() == "text\ntext\n"
    assert not list(root.glob("stages/*/damaged-*"))


def test_metrics_that_were_cut_are_told(finished, tmp_path, capfd):
    config, root = finished
    root = Path(shutil.copytree(root, tmp_path / "runs"))
    path = stage_of(root, "pretrain", "teacher") / "metrics.jsonl"
    cut(path)
    assert main(["run", str(config), "--runs", str(root)]) == 0
    said = " ".join(capfd.readouterr().err.split())
    assert f"{path} has changed since the stage was finished" in said
    assert not list(root.glob("stages/*/damaged-*"))


def test_the_reports_own_record_may_be_damaged(finished, tmp_path, capfd):
    config, root = finished
    root = Path(shutil.copytree(root, tmp_path / "runs"))
    (folder,) = root.glob("tiny-*")
    (folder / "run.json").write_text("{")
    assert main(["run", str(config), "--runs", str(root)]) == 0
    assert (folder / "damaged-run.json-1").read_text() == "{"
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"


def test_a_dry_run_tells_a_damaged_stage(finished, tmp_path, capsys):
    config, root = finished
    root = Path(shutil.copytree(root, tmp_path / "runs"))
    (stage_of(root, "pretrain", "teacher") / "run.json").write_text("[]")
    assert main(["run", str(config), "--runs", str(root), "--dry-run"]) == 0
    assert capsys.readouterr().out.count("damaged") == 1
