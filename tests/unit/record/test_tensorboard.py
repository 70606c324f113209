"""What a resumed run tells TensorBoard; the writer is a list of calls."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from ssdistill.record.run import Run
from ssdistill.record.tensorboard import TensorboardLogger
from ssdistill.record.tracker import Tracker, TrackingSettings

LINES = [
    {"step": 0, "epoch": 0, "loss/total": 3.0, "grad/norm": None},
    {"step": 5, "loss/total": 2.0},
]


@pytest.fixture
def calls(monkeypatch):
    """Calls of the writer, in their order."""
    said = []

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            said.append(("open", folder, purge_step))

        def __getattr__(self, name):
            return lambda *given, **named: said.append((name, *given, *named.values()))

    module = SimpleNamespace(SummaryWriter=SummaryWriter)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    return said


def opened(tmp_path, earlier=False):
    if earlier:
        (tmp_path / "tensorboard").mkdir()
        (tmp_path / "tensorboard" / "events.out.tfevents.1.host").write_bytes(b"")
    return TensorboardLogger(tmp_path, {"epochs": 2})


def test_event_files_of_an_earlier_process_forget_the_steps_that_come_again(tmp_path, calls):
    opened(tmp_path, earlier=True).catch_up(LINES, 6)
    assert calls[0] == ("open", str(tmp_path / "tensorboard"), 6)
    assert [name for name, *_ in calls] == ["open", "add_text"]


def test_a_run_without_event_files_writes_its_earlier_steps_again(tmp_path, calls):
    opened(tmp_path).catch_up(LINES, 6)
    assert calls[0] == ("open", str(tmp_path / "tensorboard"), None)
    written = [given for name, *given in calls if name == "add_scalar"]
    assert written == [["loss/total", 3.0, 0], ["loss/total", 2.0, 5]]


def test_a_run_logs_into_its_own_folder_beside_its_record(tmp_path, calls):
    run = Run(tmp_path, stage="distill", digest="ab" * 32, seed=1, config={"epochs": 2})
    settings = TrackingSettings(wandb="disabled", tensorboard=True)
    with Tracker(run, settings) as tracker:
        tracker.log(3, {"loss/total": 1.5, "grad/norm": float("nan")})
    assert calls[0] == ("open", str(tmp_path / "tensorboard"), None)
    assert calls[1][:2] == ("add_text", "config") and '"epochs": 2' in calls[1][2]
    assert [call for call in calls if call[0] == "add_scalar"] == [
        ("add_scalar", "loss/total", 1.5, 3)
    ]


def test_the_writer_is_opened_once_and_begins_with_the_config(tmp_path, calls):
    logger = opened(tmp_path)
    assert calls == []
    image_HWC = np.zeros((2, 3, 3), np.uint8)
    logger.log(7, {"a": 1.0, "b": 2.0}, None)
    logger.log_images(8, {"views": image_HWC})
    logger.log_model("teacher", [tmp_path / "a" / "model.safetensors"], {"sha256": "d"})
    logger.finish("finished", {"loss": 1.0})
    assert [name for name, *_ in calls] == [
        "open", "add_text", "add_scalar", "add_scalar", "flush", "add_image", "add_text",
        "add_text", "close",
    ]  # fmt: skip
    texts = dict(given for name, *given in calls if name == "add_text")
    assert all(text.startswith("    {") for text in texts.values())  # a block of code
    assert {tag: json.loads(text) for tag, text in texts.items()} == {
        "config": {"epochs": 2},
        "model/teacher": {"files": ["model.safetensors"], "sha256": "d"},
        "final": {"status": "finished", "loss": 1.0},
    }
    assert calls[5] == ("add_image", "views", image_HWC, 8, "HWC")
