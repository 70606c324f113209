"""From ``ssdistill run`` to a loss: how many files a newcomer reads."""

import sys
from pathlib import Path

import numpy as np
import pytest

from ssdistill.commands.main import main
from ssdistill.losses.simreg import SimReg

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "ssdistill"
CONFIG = """
schema: 1
name: walk
data: {kind: npz, path: data.npz}
teacher: {encoder: &net {name: resnet10t, stem_stride: 2,
  args: {layers: [1, 1, 0, 0], channels: [4, 8, 8, 8], stem_type: deep, stem_width: 4}}}
student: {encoder: *net}
pretrain: {kind: simclr, steps: 1, batch_size: 4}
control: null
distill: {steps: 1, batch_size: 4, losses: {feature: {kind: simreg, depth: 1}}}
compress: []
evaluate: null
device: {precision: fp32, memory_format: contiguous, accelerator: cpu}
"""


@pytest.fixture
def walked(tmp_path, monkeypatch):
    """Files of the package between the command and a loss, the command's first."""
    images_NHWC = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", train_images=images_NHWC, test_images=images_NHWC)
    (tmp_path / "walk.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    walks, per_image = [], SimReg.per_image

    def followed(self, *args, **kwargs):
        frame, files = sys._getframe(1), [PACKAGE / "losses/simreg.py"]
        while frame:
            files.append(Path(frame.f_code.co_filename))
            frame = frame.f_back
        walks.append(files[::-1])
        return per_image(self, *args, **kwargs)

    monkeypatch.setattr(SimReg, "per_image", followed)
    assert main(["run", "walk.yaml"]) == 0
    names = [f.relative_to(PACKAGE).as_posix() for f in walks[-1] if PACKAGE in f.parents]
    return list(dict.fromkeys(names))


def test_a_loss_is_at_most_eight_files_from_the_command_and_all_are_named(walked):
    assert walked[0] == "commands/main.py" and walked[-1] == "losses/simreg.py"
    assert len(walked) <= 8, walked
    page = (ROOT / "CONTRIBUTING.md").read_text()
    walk = page.partition("**A batch of images.**")[2].partition("**A config key.**")[0]
    places = [walk.find(f"`{name}`") for name in walked]
    assert -1 not in places and places == sorted(places), dict(zip(walked, places, strict=True))
