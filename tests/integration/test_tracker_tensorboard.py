import builtins
import logging
import sys

import numpy as np
import pytest

from ssdistill.errors import UserError
from ssdistill.record.run import Run, load_run, read_metrics
from ssdistill.record.tracker import Tracker, TrackingSettings

SETTINGS = TrackingSettings(wandb="disabled", tensorboard=True)


def open_run(folder):
    return Run(folder, stage="pretrain", digest="c" * 64, seed=0, config={"epochs": 2})


def test_event_files_hold_scalars_pictures_and_lineage(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = open_run(tmp_path)
    with Tracker(run, SETTINGS) as tracker:
        for step in range(5):
            tracker.log(step * 10, {"loss/total": 2.0 - step, "grad/norm": float("nan")})
        tracker.log_images(40, {"views": np.full((4, 6, 3), 200, np.uint8)})
        (tmp_path / "model.safetensors").write_bytes(b"w")
        tracker.log_model("teacher", tmp_path / "model.safetensors", "d" * 64)

    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    scalars = events.Scalars("loss/total")
    assert [s.step for s in scalars] == [0, 10, 20, 30, 40]
    assert [s.value for s in scalars] == [2.0, 1.0, 0.0, -1.0, -2.0]
    assert "grad/norm" not in events.Tags()["scalars"]
    assert events.Tags()["images"] == ["views"]
    texts = {
        tag: events.Tensors(tag)[0].tensor_proto.string_val[0].decode()
        for tag in events.Tags()["tensors"]
    }
    assert "d" * 64 in texts["model/teacher/text_summary"]
    assert '"epochs": 2' in texts["config/text_summary"]


def test_missing_package_is_an_error_that_names_the_extra(tmp_path, monkeypatch):
    real = builtins.__import__

    def without_tensorboard(name, *args, **kwargs):
        if name.startswith(("tensorboard", "torch.utils.tensorboard")):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setattr(builtins, "__import__", without_tensorboard)
    with pytest.raises(UserError, match=r"pip install .ssdistill\[tensorboard\]"):
        Tracker(open_run(tmp_path), SETTINGS)


def scalars(folder, name="loss/total"):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder / "tensorboard"), {"scalars": 0, "images": 0})
    events.Reload()
    return [(s.step, s.value) for s in events.Scalars(name)], events.Tags()


def train(folder, start, stop, settings=SETTINGS, interrupted=False):
    run = open_run(folder)
    with Tracker(run, settings) as tracker:
        run.rewind(start)
        for step in range(start, stop):
            if step == 0:
                tracker.log_images(0, {"views": np.full((4, 6, 3), 200, np.uint8)})
            tracker.log(step, {"loss/total": float(step), "grad/norm": float("nan")})
        if interrupted:
            raise KeyboardInterrupt


@pytest.mark.parametrize("checkpoint", [0, 6, 10], ids=lambda step: f"back to {step}")
def test_a_resumed_run_has_every_step_once(tmp_path, checkpoint):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, 0, 10, interrupted=True)
    train(tmp_path, checkpoint, 14)
    points, tags = scalars(tmp_path)
    assert points == [(step, float(step)) for step in range(14)]
    assert tags["images"] == ["views"] and "grad/norm" not in tags["scalars"]


def test_a_run_that_is_first_mirrored_after_a_resume_is_whole(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, 0, 10, TrackingSettings(wandb="disabled"), interrupted=True)
    train(tmp_path, 6, 14)
    assert scalars(tmp_path)[0] == [(step, float(step)) for step in range(14)]


def test_a_folder_that_cannot_be_written_to_does_not_stop_the_training(tmp_path, caplog):
    (tmp_path / "tensorboard").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        train(tmp_path, 0, 3)
    assert len(read_metrics(tmp_path)) == 3 and load_run(tmp_path).status == "finished"
    (said,) = [r.getMessage() for r in caplog.records if r.name == "ssdistill"]
    assert said.startswith("tensorboard logging failed (")
