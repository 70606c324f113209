"""`ssdistill embed` on saved models: killed at random moments, int8, and two at once."""

import os
import random
import signal
import time

import numpy as np
import pytest
import torch
from torch import nn

import ssdistill
from ssdistill.artifacts.artifact import load, save_encoder
from ssdistill.commands.main import main
from ssdistill.compress import Context
from ssdistill.compress.quantize import Quantize
from ssdistill.data.sources.digits import Digits
from ssdistill.evaluate.opening.images import open_images
from ssdistill.label_free.embedding import writing
from ssdistill.label_free.features import extract
from ssdistill.measure.hardware import int8_saturates


class Slow(nn.Module):
    """Means of quarters, after a while."""

    def forward(self, x_BCHW):
        time.sleep(0.004)
        return nn.functional.avg_pool2d(x_BCHW, 4).flatten(1)


def images(count=800):
    return np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)


def embed(file):
    return ssdistill.embed(Slow(), images(), out=file, batch_size=8, topk=3, progress=False)


def child_that_embeds(file):
    """Process id of a fork of this process that embeds into a file."""
    child = os.fork()
    if child:
        return child
    try:
        embed(file)
        os._exit(0)
    finally:
        os._exit(1)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".parquet", ".safetensors"])
def test_a_kill_at_any_moment_costs_no_bit(suffix, tmp_path, monkeypatch):
    # Every batch is saved, so that a kill may fall on a save as well as between two.
    monkeypatch.setattr(writing, "SECONDS", 0)
    name, moments = f"a{suffix}", random.Random(suffix)
    for folder in ("whole", "killed"):
        (tmp_path / folder).mkdir()
    began = time.monotonic()
    embed(tmp_path / "whole" / name)
    duration = time.monotonic() - began
    file = tmp_path / "killed" / name
    kills = 0
    for _ in range(6):
        child = child_that_embeds(file)
        time.sleep(moments.uniform(0.05, 0.5) * duration)
        if os.waitpid(child, os.WNOHANG) == (0, 0):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            kills += 1
        if file.exists():
            break
    assert kills
    if not file.exists():
        embed(file)
    found = {path.name: path.read_bytes() for path in file.parent.iterdir() if path.is_file()}
    expected = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    assert found == expected


def test_two_at_once_are_told_apart(tmp_path, monkeypatch):
    file = tmp_path / "a.npy"
    child = child_that_embeds(file)
    try:
        while not (tmp_path / "a.npy.partial" / "state.json").exists():
            time.sleep(0.01)
        with pytest.raises(ssdistill.errors.UserError, match="another process is writing it"):
            embed(file)
    finally:
        status = os.waitpid(child, 0)[1]
    assert status == 0
    assert np.load(file).shape == (800, 12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """``model`` and its ``int8``, for digits."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    args = {"layers": (1, 1, 0, 0), "channels": (8, 16, 16, 16), "stem_type": "deep"}
    settings = {"name": "resnet10t", "args": {**args, "stem_width": 8}, "stem_stride": 2}
    from ssdistill.models.backbones import EncoderSettings, build_encoder

    encoder = build_encoder(EncoderSettings(**settings), 16).eval()
    encoder.projector = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    save_encoder(encoder, root / "model")
    (root / "work").mkdir()
    step = Quantize(
        scheme="u8s8", calibration_images=64, check_images=36, reduce_range=int8_saturates()
    )
    save_encoder(step.apply(encoder, Context(digits, root / "work")), root / "int8")
    return root


def digits(count, seed):
    """Digits as an encoder of 16 pixels sees them."""
    pixels = torch.from_numpy(Digits().split("train").array()[:count].copy()).permute(0, 3, 1, 2)
    return torch.nn.functional.interpolate(pixels.float() / 255, 16, mode="bilinear")


@pytest.mark.parametrize("name", ["model", "int8"])
def test_rows_are_the_embeddings_that_probes_read(name, folder, tmp_path, capsys):
    model, runs, file = folder / name, tmp_path / "runs", tmp_path / "a.npy"
    words = [model, "digits", "--out", file, "--runs", runs]
    assert main(["embed", *map(str, words)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == f"names: {file}.names.txt"
    assert out[1].startswith(f"{file}: 1797 rows of 16 float32, 115.2 kB, ")
    shown = open_images("digits", root=runs)
    both = [extract(load(model), split.images, 16) for split in (shown.train, shown.test)]
    assert (np.load(file) == torch.cat(both).numpy()).all()
    test = tmp_path / "test.npy"
    assert main(["embed", *map(str, words[:2]), "--out", str(test), "--split", "test",
                 "--runs", str(runs)]) == 0  # fmt: skip
    assert (np.load(test) == both[1].numpy()).all()


def test_projections_are_those_of_the_projector(folder, tmp_path):
    array, _ = ssdistill.embed(folder / "model", "digits", layer="projection", root=tmp_path)
    rows, names = ssdistill.embed(folder / "model", "digits", root=tmp_path)
    projector = load(folder / "model").projector
    with torch.no_grad():
        expected = projector(torch.from_numpy(rows))
    np.testing.assert_allclose(array, expected.numpy(), atol=1e-5)
    assert len(names) == 1797
