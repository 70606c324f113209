"""A run on original images: a kill in mid-epoch, other workers, and the same weights."""

import signal
from pathlib import Path

import numpy as np
from forked import Command
from PIL import Image
from test_chain import CONFIG, wait_for_checkpoint, weights

STEPS = 24


def write_images(folder: Path) -> None:
    """Forty JPEGs of many sizes in two classes."""
    generator = np.random.default_rng(0)
    for n in range(40):
        height, width = generator.integers(60, 140, 2)
        pixels = generator.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
        path = folder / "ab"[n % 2] / f"{n}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).resize((width, height)).save(path, quality=90)


def start(config: Path, root: Path, workers: int) -> Command:
    overrides = [f"pretrain.steps={STEPS}", "distill=null", "compress=[]", "evaluate=null"]
    overrides += ["device.threads=1", f"device.workers={workers}", "checkpoint_seconds=0"]
    return Command(["run", config, "--runs", root, *overrides])


def test_a_killed_run_on_originals_goes_on_to_the_same_weights_with_other_workers(tmp_path):
    write_images(tmp_path / "images")
    data = f"{{kind: folder, path: {tmp_path / 'images'}, image_size: 24, pixels: original}}"
    config = tmp_path / "tiny.yaml"
    config.write_text(CONFIG.replace("{kind: npz, path: DATA}", data))
    whole = start(config, tmp_path / "whole", workers=1)
    cut = start(config, tmp_path / "cut", workers=2)
    wait_for_checkpoint(tmp_path / "cut", cut)
    cut.send_signal(signal.SIGKILL)
    cut.communicate(timeout=300)
    resumed = start(config, tmp_path / "cut", workers=3)
    for process in (whole, resumed):
        output, errors = process.communicate(timeout=400)
        assert process.returncode == 0, errors
        assert "cut from the originals" in errors + output
    assert weights(tmp_path / "cut", "pretrain") == weights(tmp_path / "whole", "pretrain")
