from types import SimpleNamespace

import numpy as np
import pytest

from ssdistill.chain.evaluation import LABELS, check_labels
from ssdistill.chain.run import run
from ssdistill.chain.stages import Stage
from ssdistill.errors import DamagedFile
from ssdistill.evaluate.labels import labels_digest
from ssdistill.experiment.reading import load_experiment
from ssdistill.record.run import load_run

CONFIG = """
schema: 1
name: tiny
data: {kind: npz, path: DATA}
teacher: {encoder: {name: resnet10t, stem: small, stem_stride: 2,
  args: {layers: [1, 1, 0, 0], channels: [8, 16, 16, 16], stem_type: deep, stem_width: 8}}}
pretrain: {kind: simclr, steps: 1, batch_size: 8}
evaluate: {linear: null, low_shot: null, label_free_images: 20}
device: {precision: fp32, memory_format: contiguous, accelerator: cpu, threads: 1}
tracking: {wandb: disabled}
"""


def split(labels):
    return SimpleNamespace(labels=np.asarray(labels))


def test_a_digest_tells_labels_apart_and_not_their_type():
    first = labels_digest(split([0, 1]), split([1]))
    assert first == labels_digest(split(np.array([0, 1], ">i2")), split([1]))
    assert first != labels_digest(split([0]), split([1, 1]))
    assert first != labels_digest(split([0, 1]), split([0]))


@pytest.fixture
def evaluation(tmp_path):
    stage = Stage("teacher", "evaluate", {"labels": True}, "f" * 64, 0)
    stage.folder(tmp_path).mkdir(parents=True)
    return stage, SimpleNamespace(root=tmp_path, train=split([0, 1]), test=split([1]))


def test_other_labels_than_were_read_are_found(evaluation):
    stage, workspace = evaluation
    check_labels(stage, workspace)  # nothing was noted
    note = stage.folder(workspace.root) / LABELS
    note.write_text(f'{{"sha256": "{labels_digest(workspace.train, workspace.test)}"}}')
    check_labels(stage, workspace)
    workspace.test = split([0])
    with pytest.raises(DamagedFile, match="the labels of the images have changed since"):
        check_labels(stage, workspace)
    note.write_text("[]")
    with pytest.raises(DamagedFile):
        check_labels(stage, workspace)


def test_an_evaluation_is_made_anew_when_labels_are_corrected(tmp_path):
    generator, data = np.random.default_rng(0), tmp_path / "data.npz"
    arrays = {
        "train_images": generator.integers(0, 256, (24, 16, 16, 3), dtype=np.uint8),
        "train_labels": np.arange(24) % 2,
        "test_images": generator.integers(0, 256, (24, 16, 16, 3), dtype=np.uint8),
        "test_labels": np.arange(24) % 2,
    }
    np.savez(data, **arrays)
    config = tmp_path / "tiny.yaml"
    config.write_text(CONFIG.replace("DATA", str(data)))

    def accuracy():
        run(load_experiment(config)[0], tmp_path / "runs")
        folders = sorted((tmp_path / "runs").glob("stages/evaluate-*/s0"))
        return np.array([load_run(folder).metrics["probe/knn/top1"] for folder in folders])

    before = accuracy()
    assert len(before) == 2  # of the teacher and of an untrained network
    arrays["test_labels"] = 1 - arrays["test_labels"]
    np.savez(data, **arrays)
    assert accuracy() == pytest.approx(100 - before)
