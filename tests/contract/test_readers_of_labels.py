"""A run, a probe and a packing whose labels raise wherever a room other than `evaluate` reads."""

import sys
from pathlib import Path

import numpy as np
import pytest

import ssdistill
from ssdistill.commands.main import main
from ssdistill.data.array_split import ArraySplit
from ssdistill.data.image_set import ImageSet
from ssdistill.data.opening import open_source
from ssdistill.settings.registry import SOURCES

PACKAGE = Path(ssdistill.__file__).parent
COPIED = ("data/shards/labels.py", "label_files")
"""Where labels become bytes that the packer writes."""
CONFIG = """
schema: 1
name: guarded
profile: smoke
data: {kind: npz, path: DATA}
teacher: {encoder: &net {name: resnet10t, stem: small, stem_stride: 2,
  args: {layers: [1, 1, 0, 0], channels: [16, 16, 16, 16], stem_type: deep, stem_width: 8}}}
student: {encoder: *net}
pretrain: {kind: simclr, steps: 2, batch_size: 16}
distill: {steps: 2, batch_size: 16, losses: {feature: {kind: simreg}}}
compress:
  - {kind: prune, ratio: 0.5, round_to: 8}
  - {kind: recover, steps: 2, batch_size: 16}
measure: {latency: false}
device: {precision: fp32, memory_format: contiguous, accelerator: cpu}
tracking: {wandb: disabled, log_every: 1, online_probe: true}
"""


def reader():
    """The file outside of `data` that reads labels now, by its path in the package."""
    frame = sys._getframe(1)
    while frame := frame.f_back:
        path = Path(frame.f_code.co_filename)
        if not path.is_relative_to(PACKAGE):
            continue
        name = path.relative_to(PACKAGE).as_posix()
        if (name, frame.f_code.co_name) == COPIED or not name.startswith("data/"):
            return name
    return None


@pytest.fixture
def readers(monkeypatch):
    """Every file that has read labels; they raise in other rooms than `evaluate`."""
    found = []

    def guarded(read):
        def labels(self):
            name = reader()
            if name and not name.startswith("evaluate/") and name != COPIED[0]:
                raise AssertionError(f"{name} reads labels")
            found.append(name)
            return read(self)

        return labels

    monkeypatch.setattr(ImageSet, "labels", property(guarded(ImageSet.labels.func)))
    monkeypatch.setattr(ArraySplit, "labels", guarded(ArraySplit.labels))
    return found


@pytest.fixture
def images(tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / "images.npz"
    arrays = {}
    for split, count in {"train": 48, "test": 24}.items():
        label_N = np.arange(count) % 3
        pixels = rng.integers(0, 120, (count, 16, 16, 3)) + 60 * label_N[:, None, None, None]
        arrays |= {f"{split}_images": pixels.astype(np.uint8), f"{split}_labels": label_N}
    np.savez(path, **arrays)
    return path


def test_a_run_reads_labels_in_evaluate_alone(readers, images, tmp_path):
    config = tmp_path / "guarded.yaml"
    config.write_text(CONFIG.replace("DATA", str(images)))
    report = ssdistill.run(config, root=tmp_path / "runs")
    assert {*report.models} >= {"teacher", "distilled", "recovered"}
    assert "evaluate/probes/online_probe.py" in readers


def test_a_probe_and_its_page_read_labels_in_evaluate_alone(readers, images, tmp_path):
    from ssdistill.commands.probe.page import render

    probed = ssdistill.probe(
        lambda x_BCHW: x_BCHW.mean((2, 3)), str(images), ["knn"], root=tmp_path, progress=False
    )
    assert "<svg" in render(probed) and readers


def test_a_packer_copies_labels_that_it_cannot_read(readers, images, tmp_path):
    words = ["data", "pack", "kind=npz", f"path={images}", "--to", str(tmp_path / "shards")]
    assert main([*words, "--labels"]) == 0
    assert readers == [COPIED[0]] * 2  # of the training and of the test images
    packed = open_source(SOURCES.schema("tar")(path=str(tmp_path / "shards")))
    assert packed.split("train").labels().tolist() == [k % 3 for k in range(48)]


@pytest.mark.parametrize("room", ["losses/simreg.py", "commands/probe/page.py", "__init__.py"])
def test_a_reading_in_another_room_raises(readers, images, room):
    scope = {}
    code = "def read(split):\n    return split.labels()\n"
    exec(compile(code, PACKAGE / room, "exec"), scope)
    split = open_source(SOURCES.schema("npz")(path=str(images))).split("train")
    with pytest.raises(AssertionError, match=f"{room} reads labels"):
        scope["read"](split)
    assert len(split.labels()) == 48
