import pytest
import torch

from ssdistill.chain.arithmetic import choose_arithmetic
from ssdistill.data.loader import Loader
from ssdistill.data.recipes import RECIPES
from ssdistill.pretrain.simclr import SimCLR
from ssdistill.train.loop import Training
from ssdistill.train.optim import OptimSettings
from ssdistill.train.settings import DeviceSettings


@pytest.fixture
def training(make_encoder, make_store):
    loader = Loader(make_store(), 4, 0, 2)
    return Training(SimCLR(make_encoder()), loader, (RECIPES["weak"],) * 2, OptimSettings(), 0)


def test_what_is_compiled_is_what_a_step_calls(training, tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda call, **options: compiled.append(call) or call)
    fixed = {"precision": "fp32", "memory_format": "contiguous", "accelerator": "cpu"}
    choose_arithmetic(training, DeviceSettings(compile=True, **fixed), tmp_path)
    called = [call.__self__ for call in compiled]
    assert called == [training.task.encoder]


def test_only_what_is_left_open_is_measured_and_remembered(training, tmp_path):
    device = DeviceSettings(precision="fp32", accelerator="cpu")
    choose_arithmetic(training, device, tmp_path)
    assert training.precision == "fp32" and (tmp_path / "precision.json").exists()
    fixed = DeviceSettings(precision="bf16", memory_format="contiguous", accelerator="cpu")
    choose_arithmetic(training, fixed, tmp_path / "none")
    assert training.precision == "bf16" and not (tmp_path / "none").exists()
