import subprocess
import sys

import pytest
import torch

from ssdistill.artifacts.artifact import save_encoder
from ssdistill.errors import UserError
from ssdistill.measure import memory
from ssdistill.measure.memory import peak_memory
from ssdistill.models.backbones import EncoderSettings, build_encoder

ON_LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells")


@ON_LINUX
def test_memory_is_at_least_the_weights_and_what_the_parent_holds_is_not_in_it(tmp_path):
    args = {"layers": (1, 1, 1, 1), "channels": (64, 128, 256, 512)}
    encoder = build_encoder(EncoderSettings(name="resnet18", args=args), 32)
    save_encoder(encoder, tmp_path)
    weights = (tmp_path / "model.safetensors").stat().st_size
    ballast = torch.ones(100_000_000)
    found = peak_memory(tmp_path)
    assert weights < found.running < 0.9 * 4 * len(ballast)
    assert found.opening > weights
    assert (found.batch_size, found.threads) == (1, 1)


@ON_LINUX
def test_a_larger_batch_of_given_inputs_takes_more(tmp_path, make_encoder):
    save_encoder(make_encoder(), tmp_path)
    inputs = torch.ones(1, 3, 256, 256)
    small, large = peak_memory(tmp_path), peak_memory(tmp_path, 16, inputs)
    assert large.running > small.running + 16 * inputs.nbytes
    assert large.batch_size == 16


def test_what_cannot_be_opened_or_run_is_an_error_of_one_line(tmp_path, make_encoder, monkeypatch):
    with pytest.raises(UserError, match="not the folder of a saved"):
        peak_memory(tmp_path)
    save_encoder(make_encoder(), tmp_path)
    orders = []

    def start(command, **_):
        orders.append(command)
        return subprocess.CompletedProcess(command, 1, "", "Traceback\nUserError: it is damaged\n")

    monkeypatch.setattr(memory, "_can_reset_peak", lambda: True)
    monkeypatch.setattr(memory.subprocess, "run", start)
    with pytest.raises(
        UserError, match=f"cannot measure the memory of {tmp_path}: UserError: it is damaged"
    ):
        peak_memory(tmp_path, batch_size=64, inputs=torch.ones(1, 3, 16, 16))
    assert '"batch_size": 64' in orders[0][-1]


def test_a_process_that_ends_without_a_word_was_killed(tmp_path, make_encoder, monkeypatch):
    save_encoder(make_encoder(), tmp_path)
    silent = subprocess.CompletedProcess([], -9, "", "\n")
    monkeypatch.setattr(memory, "_can_reset_peak", lambda: True)
    monkeypatch.setattr(memory.subprocess, "run", lambda *_, **__: silent)
    with pytest.raises(UserError, match="its process was killed"):
        peak_memory(tmp_path)


def test_where_the_kernel_does_not_tell_there_is_no_number(tmp_path, make_encoder, monkeypatch):
    save_encoder(make_encoder(), tmp_path)
    monkeypatch.setattr(memory, "CLEAR", tmp_path / "missing" / "clear_refs")
    assert peak_memory(tmp_path) is None
    monkeypatch.setattr(memory, "CLEAR", tmp_path / "clear_refs")
    (tmp_path / "status").write_text("Name: python\n")
    monkeypatch.setattr(memory, "STATUS", tmp_path / "status")
    assert peak_memory(tmp_path) is None
