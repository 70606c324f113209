"""Which steps are logged to W&B and TensorBoard, and when."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from ssdistill.record import session
from ssdistill.record.run import Run, read_metrics
from ssdistill.record.tracker import Tracker, TrackingSettings


class Logger:
    name = "seen"

    def __init__(self):
        self.steps, self.ends, self.caught_up, self.models = [], [], [], []

    def catch_up(self, lines, step):
        self.caught_up.append(([line["step"] for line in lines], step))

    def log(self, step, metrics, epoch):
        self.steps.append((step, metrics))

    def log_model(self, name, files, lineage):
        self.models.append((name, files, lineage))

    def finish(self, status, metrics):
        self.ends.append((status, metrics))


@pytest.fixture
def opened(tmp_path):
    """``opened()``: a tracker of one and the same folder, and its logger."""
    facts = {"digest": "d" * 64, "seed": 0, "name": "a", "group": "a", "profile": "smoke"}
    facts |= {"fingerprint": "f" * 64, "parents": {}, "config": {}}

    def open_it(**settings):
        run = Run(tmp_path / "run", stage="pretrain", kind="teacher", **facts)
        tracker = Tracker(run, TrackingSettings(wandb="disabled", **settings))
        tracker.loggers.append(Logger())
        return tracker, tracker.loggers[-1]

    return open_it


def test_a_step_that_was_logged_before_the_interruption_is_not_logged_again(opened):
    tracker, logger = opened()
    for step in range(3):
        tracker.log(step, {"loss/total": float(step)})
    assert [step for step, _ in logger.steps] == [0, 1, 2]
    tracker.close()
    resumed, logger = opened()
    resumed.run.rewind(1)
    for step in (1, 2, 3):
        resumed.log(step, {"loss/total": 10.0 + step})
    assert logger.caught_up == [([0], 1)]
    assert [step for step, _ in logger.steps] == [1, 2, 3]
    lines = read_metrics(resumed.run.folder)
    assert [line["loss/total"] for line in lines] == [0.0, 11.0, 12.0, 13.0]


def test_numbers_that_are_not_finite_are_recorded_as_none_and_not_logged(opened):
    tracker, logger = opened()
    tracker.log(0, {"a": float("nan"), "b": 2.0})
    assert logger.steps == [(0, {"b": 2.0})]
    (line,) = read_metrics(tracker.run.folder)
    assert line["a"] is None and line["b"] == 2.0


@pytest.mark.parametrize(("every", "due"), [(1, [0, 1, 2, 3, 4, 5, 6]), (3, [0, 3, 6])])
def test_every_so_many_steps_are_logged(opened, every, due):
    tracker, _ = opened(log_every=every)
    assert [step for step in range(7) if tracker.due(step)] == due


def test_gradients_are_due_at_logged_steps_only(opened):
    tracker, _ = opened(log_every=2, gradients_every=3)
    assert [step for step in range(13) if tracker.gradients_due(step)] == [0, 6, 12]
    tracker, _ = opened(log_every=2, gradients_every=None)
    assert not any(tracker.gradients_due(step) for step in range(13))


@pytest.mark.parametrize("stage", ["distill", "report"])
def test_outside_a_sweep_and_without_a_run_of_the_caller_nothing_is_shared(stage, monkeypatch):
    monkeypatch.setattr(session, "active_run", lambda: None)
    monkeypatch.delenv("WANDB_SWEEP_ID", raising=False)
    record = SimpleNamespace(stage=stage)
    assert session.Session().shared_logger(record, "offline", ()) is None


def test_the_files_of_a_model_are_shown_in_order_and_folders_are_none(opened, monkeypatch):
    tracker, logger = opened()
    folder = tracker.run.folder / "student"
    (folder / "below").mkdir(parents=True)
    for name in ("model.json", "below/b", "a"):
        (folder / name).write_text("x")
    plain = Path.rglob
    monkeypatch.setattr(Path, "rglob", lambda *asked: sorted(plain(*asked), reverse=True))
    tracker.log_model("student", folder, "s" * 64, parent_sha256="p" * 64, bits=8)
    ((name, files, lineage),) = logger.models
    assert [file.relative_to(folder).as_posix() for file in files] == ["a", "below/b", "model.json"]
    facts = {"sha256": "s" * 64, "parent_sha256": "p" * 64, "bits": 8}
    assert (name, lineage) == ("student", facts | {"digest": "d" * 64, "seed": 0})
    artifact = tracker.run.record.artifacts["student"]
    assert artifact == {"file": "student", **facts}


def test_a_model_of_one_file_is_that_file(opened):
    tracker, logger = opened()
    (tracker.run.folder / "model.onnx").write_text("x")
    (tracker.run.folder / "beside").write_text("x")
    tracker.log_model("student", tracker.run.folder / "model.onnx", "s" * 64)
    assert logger.models[0][1] == [tracker.run.folder / "model.onnx"]


def test_loggers_end_with_the_status_and_the_finite_numbers_and_once(opened):
    tracker, logger = opened()
    tracker.finish({"probe/knn/top1": 50.0, "agree/cka": float("nan")})
    tracker.close()
    assert logger.ends == [("finished", {"probe/knn/top1": 50.0})]


def test_a_run_without_a_step_before_has_nothing_to_catch_up(opened):
    tracker, logger = opened()
    tracker.log(0, {"a": 1.0})
    tracker.close()
    assert logger.caught_up == []
    again, logger = opened()
    again.close()
    assert logger.caught_up == [([0], None)]


def test_a_wandb_that_cannot_be_imported_costs_nothing_but_its_own_log(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    for name in [n for n in sys.modules if n.split(".")[0] == "wandb"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "wandb", None)
    for number, mode in enumerate(("offline", "online")):
        monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
        run = Run(tmp_path / str(number), stage="distill", digest="ab" * 32, seed=0)
        with Tracker(run, TrackingSettings(wandb=mode)) as tracker:
            tracker.log(0, {"loss": 1.0})
            tracker.finish({})
        assert run.record.status == "finished"
        assert "wandb logging failed" in caplog.text
        caplog.clear()
