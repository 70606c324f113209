"""Runs on a few images finish, with or without test images and labels, and say what they skip."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ssdistill

CONFIG = """
schema: 1
name: few
profile: smoke
data: {kind: folder, path: IMAGES, image_size: 16}
teacher: {encoder: &net {name: resnet10t, stem: small, stem_stride: 2,
  args: {layers: [1, 1, 0, 0], channels: [8, 16, 16, 16], stem_type: deep, stem_width: 8}}}
student: {encoder: *net}
pretrain: {kind: simclr, steps: 2, batch_size: BATCH}
control: null
distill: {steps: 2, batch_size: BATCH, losses: {feature: {kind: simreg}}}
compress: [{kind: prune, ratio: 0.5, round_to: 8}]
device: {accelerator: cpu, precision: fp32, memory_format: contiguous}
tracking: {wandb: disabled}
"""


def folder_of(path: Path, names: list[str]) -> Path:
    rng = np.random.default_rng(0)
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(path / name)
    return path


@pytest.mark.parametrize(
    ("names", "changes", "skipped"),
    [
        ([f"{n}.png" for n in range(3)], ["data.pixels=original"], "too few for"),
        (
            [f"{n % 2}/{n}.png" for n in range(12)],
            ["data.test_fraction=0", "data.pixels=stored", "measure.latency=false"],
            "there are no test images",
        ),
        (
            [f"{n}/a.png" for n in range(8)],
            ["data.pixels=original", "measure.latency=false"],
            "is in a separate folder",
        ),
    ],
    ids=["three", "no_test_images", "a_folder_each"],
)
def test_a_run_on_a_few_images_finishes(tmp_path, capfd, names, changes, skipped):
    images = folder_of(tmp_path / "images", names)
    config = tmp_path / "few.yaml"
    batch = min(4, len(names) - 1)
    config.write_text(CONFIG.replace("IMAGES", str(images)).replace("BATCH", str(batch)))
    report = ssdistill.run(config, *changes, root=tmp_path / "runs")
    assert {"teacher", "distilled", "pruned"} <= {record["model"] for record in report.records}
    assert (report.folder / "report.html").exists()
    out, err = capfd.readouterr()
    assert skipped in " ".join((out + err).split())
