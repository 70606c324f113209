"""A dry run decodes nothing: it shows what is known, and says what is not."""

import numpy as np
import pytest
from PIL import Image

from ssdistill.chain import run as run_module
from ssdistill.chain.run import dry_run
from ssdistill.commands.main import main
from ssdistill.data import store_writer
from ssdistill.data.file_split import FileSplit
from ssdistill.data.opening import open_source, open_stores
from ssdistill.errors import UserError
from ssdistill.experiment.reading import load_experiment

TINY = """
schema: 1
name: tiny
data: {kind: folder, path: DATA, image_size: 16}
teacher: {encoder: {name: resnet10t, stem_stride: 2, args:
  {layers: [1, 1, 0, 0], channels: [8, 16, 16, 16], stem_type: deep, stem_width: 8}}}
pretrain: {kind: simclr, steps: 2, batch_size: 2}
"""
WAYS = pytest.mark.parametrize("pixels", ["stored", "original"])


@pytest.fixture
def config(tmp_path):
    for number in range(40):
        path = tmp_path / "set" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (16, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY.replace("DATA", str(tmp_path / "set")))
    return path


@pytest.fixture
def unreadable(monkeypatch):
    def refuse(*_):
        raise AssertionError("an image was read")

    for name in ("image", "read", "open"):
        monkeypatch.setattr(FileSplit, name, refuse)


@pytest.fixture
def lines(monkeypatch):
    said = []
    monkeypatch.setattr(run_module.console, "print", lambda text, **_: said.append(text))
    return said


def experiment_of(config, *overrides):
    return load_experiment(config, list(overrides))[0]


def decode(experiment, root):
    open_stores(open_source(experiment.data), experiment.data, 16, root / "data")


@WAYS
def test_no_image_is_read_and_nothing_is_written(config, tmp_path, unreadable, lines, pixels):
    planned = dry_run(experiment_of(config, f"data.pixels={pixels}"), tmp_path / "runs")
    assert [p.stage.kind for p in planned] == ["initialize", "pretrain", "evaluate", "evaluate"]
    assert {(p.status, p.known) for p in planned} == {("to run", False)}
    assert not (tmp_path / "runs").exists()
    (line,) = (line for line in lines if line.startswith("not decoded yet: "))
    counts, place = "32 training images and 8 test images", tmp_path / "runs" / "data"
    wanted = {
        "stored": f"a run stores {counts} in {place} (30.7 kB)",
        "original": f"a run reads the originals of {counts} and keeps an index in {place} (960 B)",
    }[pixels]
    assert wanted in line and line.endswith("and checks of pixels and labels, need that")


@WAYS
def test_what_is_decoded_is_used(config, tmp_path, monkeypatch, lines, pixels):
    experiment = experiment_of(config, f"data.pixels={pixels}")
    decode(experiment, tmp_path / "runs")
    monkeypatch.setattr(store_writer, "Squarer", None)
    before = dry_run(experiment, tmp_path / "runs")
    assert {(p.status, p.known) for p in before} == {("missing", True)}
    assert not any("not decoded" in line for line in lines)
    assert any(line.startswith("2 classes") for line in lines)
    run_module.run(experiment, tmp_path / "runs")
    after = dry_run(experiment, tmp_path / "runs")
    assert [p.stage.digest for p in before] == [p.stage.digest for p in after]
    assert {p.status for p in after} == {"finished"}


@WAYS
def test_changed_images_are_unknown_again(config, tmp_path, lines, pixels):
    experiment = experiment_of(config, f"data.pixels={pixels}")
    decode(experiment, tmp_path / "runs")
    for path in (tmp_path / "set").glob("*/*.png"):
        Image.new("RGB", (18, 18)).save(path)
    again = experiment_of(config, f"data.pixels={pixels}")
    assert not any(p.known for p in dry_run(again, tmp_path / "runs"))


def test_evaluations_are_unknown_without_the_test_images_alone(config, tmp_path, lines):
    experiment = experiment_of(config, "data.pixels=stored")
    decode(experiment, tmp_path / "runs")
    (stored,) = (tmp_path / "runs" / "data").glob("folder-test-16-????????????")
    (stored / "store.json").unlink()
    planned = dry_run(experiment, tmp_path / "runs")
    assert [p.known for p in planned] == [p.stage.kind != "evaluate" for p in planned]


def test_the_table_shows_no_hash_that_no_run_would_have(config, tmp_path, unreadable, capsys):
    root = tmp_path / "runs"
    assert main(["run", str(config), "--runs", str(root), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert out.count("to run") == 4 and out.count("unknown") == 4
    planned = dry_run(experiment_of(config), root)
    assert not any(p.stage.digest[:8] in out for p in planned)


def test_counts_are_checked_all_the_same(config, tmp_path, unreadable):
    with pytest.raises(UserError, match=r"pretrain\.batch_size=64.*32 training images"):
        dry_run(experiment_of(config, "pretrain.batch_size=64"), tmp_path / "runs")


def test_a_disk_that_is_too_small_is_told_before(config, tmp_path, unreadable, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("ssdistill.data.store.shutil.disk_usage", lambda folder: usage)
    with pytest.raises(UserError, match=r"32 images take .* GB are free"):
        dry_run(experiment_of(config), tmp_path / "runs")
    assert dry_run(experiment_of(config, "data.pixels=original"), tmp_path / "runs")


@pytest.mark.parametrize("window", ["auto", "full", "[0, 4095]"])
def test_a_store_of_deep_images_is_found_by_its_window(config, tmp_path, monkeypatch, window):
    for number, path in enumerate(sorted((tmp_path / "set").glob("*/*.png"))):
        deep = np.random.default_rng(number).integers(0, 4096, (16, 16)).astype(np.uint16)
        Image.fromarray(deep).save(path)
    experiment = experiment_of(config, f"data.window={window}", "data.pixels=stored")
    assert not any(p.known for p in dry_run(experiment, tmp_path / "runs"))
    decode(experiment, tmp_path / "runs")
    monkeypatch.setattr(store_writer, "Squarer", None)
    assert all(p.known for p in dry_run(experiment, tmp_path / "runs"))
