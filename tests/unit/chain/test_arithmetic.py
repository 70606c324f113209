from types import SimpleNamespace

import pytest
import torch

from ssdistill.chain import arithmetic
from ssdistill.chain.arithmetic import choose_arithmetic, step_ratios
from ssdistill.data.loader import Loader
from ssdistill.data.recipes import RECIPES
from ssdistill.pretrain.simclr import SimCLR
from ssdistill.train.loop import Training
from ssdistill.train.optim import OptimSettings
from ssdistill.train.settings import DeviceSettings

FIXED = DeviceSettings(precision="fp32", memory_format="contiguous", accelerator="cpu")


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


def test_the_shortest_step_of_each_training_counts(monkeypatch):
    """A slow round says what else the machine did."""
    durations = {"slow": [9.0] + [2.0] * 24, "fast": [1.0] * 24 + [7.0]}
    calls = {role: iter(values) for role, values in durations.items()}
    monkeypatch.setattr(arithmetic, "_step", lambda role: lambda: role)
    monkeypatch.setattr(arithmetic, "_seconds", lambda step: next(calls[step()]))
    trainings = {role: (role,) for role in durations}
    assert step_ratios(trainings, to="fast") == {"slow": 2.0, "fast": 1.0}
    calls = {role: iter(values) for role, values in durations.items()}
    assert step_ratios(trainings, to="slow") == {"slow": 1.0, "fast": 0.5}


def test_a_timed_step_is_a_whole_step_of_training(training):
    task = training.task.eval()
    before = [p.detach().clone() for p in task.parameters()]
    heard = []
    task.after_step = lambda step, num_steps: heard.append((step, num_steps))
    fabric = choose_arithmetic(training, FIXED, None)
    step = arithmetic._step(training, fabric)
    for _ in range(2):
        step()
    assert task.training and heard == [(0, 2), (0, 2)]
    assert any(not torch.equal(p, b) for p, b in zip(task.parameters(), before, strict=True))
    assert all(p.grad is None for p in task.parameters())


def test_timing_leaves_the_generators_as_they_were(training):
    fabric = choose_arithmetic(training, FIXED, None)
    before = torch.get_rng_state()
    step_ratios({"a": (training, fabric)}, to="a")
    assert torch.equal(torch.get_rng_state(), before)


def test_the_key_of_a_choice_tells_trainings_apart(training):
    """The widths of a pruned network and the losses are in no spec."""
    candidates = [("fp32", "contiguous")]
    before = arithmetic._key(training, candidates)
    assert before["losses"] == ["simclr"] and before["task"] == "SimCLR"
    assert before["shapes"] == sorted(before["shapes"])
    assert len(set(before["shapes"])) == len(before["shapes"])
    training.task.extra = torch.nn.Linear(3, 77)
    after = arithmetic._key(training, candidates)
    assert after != before and (77, 3) in after["shapes"]
    assert arithmetic._key(training, [("bf16", "contiguous")]) != after


@pytest.mark.parametrize("remembered", [False, True])
def test_a_choice_is_announced_when_it_is_made(training, tmp_path, monkeypatch, remembered):
    choice = SimpleNamespace(precision="bf16", memory_format="channels_last", remembered=remembered)
    monkeypatch.setattr(arithmetic, "choose_precision", lambda *args, **more: choice)
    with arithmetic.console.capture() as said:
        choose_arithmetic(training, DeviceSettings(accelerator="cpu"), tmp_path)
    assert training.precision == "bf16" and training.memory_format == torch.channels_last
    assert (
        "precision bf16, memory format channels_last (fastest here)" in said.get()
    ) is not remembered


@pytest.mark.parametrize("memory_format", ["contiguous", "auto"])
def test_float16_is_taken_where_it_is_asked_for(training, tmp_path, memory_format):
    device = DeviceSettings(precision="fp16", memory_format=memory_format, accelerator="cpu")
    fabric = choose_arithmetic(training, device, tmp_path)
    assert training.precision == "fp16"
    with fabric.autocast():
        assert torch.get_autocast_dtype("cpu") == torch.float16
    assert fabric.strategy.precision.scaler.is_enabled()


def test_float16_is_not_chosen_by_itself(training, tmp_path, monkeypatch):
    tried = []

    def choose(make_step, candidates, **rest):
        tried.extend(candidates)
        return SimpleNamespace(precision="fp32", memory_format="contiguous", remembered=True)

    monkeypatch.setattr(arithmetic, "choose_precision", choose)
    choose_arithmetic(training, DeviceSettings(accelerator="cpu"), tmp_path)
    assert tried == [*arithmetic.CANDIDATES] and "fp16" not in {p for p, _ in tried}


def test_steps_that_recompute_activations_are_timed_so_and_remembered_apart(training, monkeypatch):
    before = arithmetic._key(training, [("fp32", "contiguous")])
    training.checkpoint_activations = True
    assert arithmetic._key(training, [("fp32", "contiguous")]) != before
    seen, recomputed = [], arithmetic.recomputed
    monkeypatch.setattr(
        arithmetic, "recomputed", lambda e, wanted: seen.append(wanted) or recomputed(e, wanted)
    )
    arithmetic._step(training, choose_arithmetic(training, FIXED, None))()
    assert seen == [True]
