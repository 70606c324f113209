"""A runs folder that version 0.1.0 wrote: every stage is reused, every model opens.

``tests/golden/released_0_1_0/runs.zip`` holds its config, the stages of its run, and what its
models answered to four test images then.
"""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import ssdistill
from ssdistill.chain import run as run_module

RELEASED = Path(__file__).parents[1] / "golden" / "released_0_1_0" / "runs.zip"
MODELS = ("pretrain-3da71424", "distill-9828d606", "initialize-741f17f1", "compress-e1a3b335")


def images(count: int, start: int) -> np.ndarray:
    """(count, 16, 16, 3) uint8: the upper bits of Knuth's multiplicative hash."""
    n = np.arange(start, start + count * 16 * 16 * 3, dtype=np.uint64)
    return ((n * 2654435761) % 4294967296 >> 24).astype(np.uint8).reshape(count, 16, 16, 3)


TEST_IMAGES = images(30, 10**6)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    with zipfile.ZipFile(RELEASED) as archive:
        archive.extractall(tmp_path)
    labels = {"train_labels": np.arange(40) % 2, "test_labels": np.arange(30) % 2}
    np.savez(tmp_path / "data.npz", train_images=images(40, 0), test_images=TEST_IMAGES, **labels)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_no_stage_of_the_first_release_is_computed_again(folder, monkeypatch):
    def compute(stage, *_):
        raise AssertionError(f"{stage.kind} {stage.role} is computed again")

    monkeypatch.setattr(run_module, "BODIES", dict.fromkeys(run_module.BODIES, compute))
    before = {path: path.read_bytes() for path in (folder / "runs").rglob("*") if path.is_file()}
    report = ssdistill.run("released.yaml", root=folder / "runs")
    assert {"untrained", "teacher", "distilled", "pruned", "int8"} == {
        row[0] for row in report.tables[0].rows
    }
    assert {path: path.read_bytes() for path in before} == before


def test_every_model_of_the_first_release_answers_as_it_did(folder):
    x_BCHW = torch.from_numpy(TEST_IMAGES[:4]).permute(0, 3, 1, 2).float() / 255
    expected = np.load("embeddings.npz")
    assert {*MODELS} < {*expected}
    for stage in expected:
        with torch.no_grad():
            embedding_BD = ssdistill.load(folder / "runs/stages" / stage)(x_BCHW).embedding_BD
        # Int8 rounds otherwise on other processors.
        tolerance = 1e-5 if stage in MODELS else 0.05
        assert embedding_BD.numpy() == pytest.approx(expected[stage], abs=tolerance)
