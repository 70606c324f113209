"""The W&B run that the stages of one experiment share, and the names by which they are told apart.

A run of W&B's own is not needed: what is called on it is looked at.
"""

from contextlib import suppress
from pathlib import Path

import pytest

from ssdistill.record import session as room
from ssdistill.record import wandb_logger
from ssdistill.record.run_record import RunRecord
from ssdistill.record.session import Session, current_session, session
from ssdistill.record.tracking_settings import TrackingSettings
from ssdistill.record.wandb_logger import (
    SharedLogger,
    SharedReport,
    WandbLogger,
    run_name,
    wandb_id,
    with_columns,
)


class WandbRun:
    """As much of W&B's run as a logger looks at, and what it was told."""

    def __init__(self, folder=".", resumed=False, **summary):
        self.dir, self.id, self.resumed, self.summary = str(folder), "id", resumed, summary
        self.metrics, self.lines, self.ends = [], [], []

    def define_metric(self, name, **how):
        self.metrics.append((name, how))

    def log(self, line):
        self.lines.append(line)

    def finish(self, exit_code):
        self.ends.append(exit_code)


def record_of(**changes):
    facts = {"stage": "distill", "digest": "ab" * 32, "seed": 3, "role": "distilled"}
    return RunRecord(**facts | changes)


@pytest.mark.parametrize(("by_seed", "prefix"), [(False, "distilled/"), (True, "distilled/s3/")])
def test_a_stage_logs_under_the_name_of_its_row_and_of_its_seed_among_several(by_seed, prefix):
    run = WandbRun()
    logger = SharedLogger(run, record_of(), by_seed)
    assert run.metrics == [
        (f"{prefix}step", {"hidden": True}),
        (f"{prefix}*", {"step_metric": f"{prefix}step"}),
    ]
    logger.log(5, {"loss/total": 1.0}, None)
    logger.log(6, {"loss/total": 0.5}, 2)
    assert run.lines == [
        {f"{prefix}step": 5, f"{prefix}loss/total": 1.0},
        {f"{prefix}step": 6, f"{prefix}epoch": 2, f"{prefix}loss/total": 0.5},
    ]
    logger.finish("finished", {"probe/knn/top1": 50.0})
    assert run.summary == {f"{prefix}probe/knn/top1": 50.0} and run.ends == []


def test_a_stage_without_a_row_is_called_by_itself():
    run = WandbRun()
    SharedLogger(run, record_of(role=""), by_seed=False)
    assert run.metrics[0][0] == "distill/step"


@pytest.mark.parametrize(
    ("resumed", "summary", "logged"),
    [
        (False, {"distilled/step": 7}, [6, 7, 8]),
        (True, {"distilled/step": 7}, [8]),
        (True, {"distilled/step": 7.0}, [8]),
        (True, {"distilled/step": "x"}, [6, 7, 8]),
        (True, {"step": 7}, [6, 7, 8]),
    ],
)
def test_steps_that_a_resumed_run_shows_already_are_not_sent_again(resumed, summary, logged):
    run = WandbRun(resumed=resumed, **summary)
    logger = SharedLogger(run, record_of(), by_seed=False)
    lines = [{"step": step, "epoch": 1, "a": 1.0, "b": None} for step in (6, 7, 8)]
    logger.catch_up(lines, 9)
    assert [line["distilled/step"] for line in run.lines] == logged
    assert all(line.keys() == {f"distilled/{n}" for n in ("step", "epoch", "a")}
               for line in run.lines)  # fmt: skip


def test_a_report_has_no_name_before_its_numbers_and_repeats_no_step():
    run = WandbRun()
    report = SharedReport(run)
    report.log(3, {"a": 1.0}, None)
    report.catch_up([{"step": 1, "a": 1.0}], 2)
    assert run.lines == []
    report.finish("finished", {"distilled/probe/knn/top1": 50.0})
    assert run.lines == [{"distilled/probe/knn/top1": 50.0}]
    assert run.summary == {"distilled/probe/knn/top1": 50.0} and run.ends == []


@pytest.mark.parametrize(("status", "code"), [("finished", 0), ("failed", 1), ("interrupted", 1)])
def test_a_run_of_a_stage_ends_as_the_stage_did(status, code, tmp_path):
    logger = WandbLogger.__new__(WandbLogger)
    run = WandbRun(tmp_path / "files")
    logger._begin(run, prefix="")
    logger.finish(status, {"a": 1.0})
    assert run.summary == {"a": 1.0, "status": status} and run.ends == [code]


@pytest.mark.parametrize(
    ("facts", "group"),
    [
        ({"group": "chapter 3", "name": "a"}, "chapter 3"),
        ({"name": "quickstart"}, "quickstart-abababab"),
        ({}, "distill-abababab"),
    ],
)
def test_a_run_of_a_stage_is_grouped_by_name_and_hash_where_no_group_is_given(
    facts, group, tmp_path, monkeypatch
):
    monkeypatch.delenv("WANDB_RUN_GROUP", raising=False)
    opened = []

    def open_it(mode, arguments):
        opened.append((mode, arguments))
        return WandbRun(tmp_path)

    monkeypatch.setattr(wandb_logger, "_open", open_it)
    record = record_of(**facts)
    WandbLogger(record, tmp_path, TrackingSettings(), "offline")
    ((mode, arguments),) = opened
    assert (mode, arguments["group"], arguments["job_type"]) == ("offline", group, "distill")
    assert arguments["id"] == "abababab-distill-s3"


def test_a_full_disk_is_an_error_before_anything_is_sent(tmp_path, monkeypatch):
    logger = WandbLogger.__new__(WandbLogger)
    run = WandbRun(tmp_path)
    logger._begin(run, prefix="")
    free = {"bytes": wandb_logger.FREE_BYTES}
    usage = type("Usage", (), {"free": property(lambda self: free["bytes"])})()
    monkeypatch.setattr(wandb_logger.shutil, "disk_usage", lambda folder: usage)
    logger.log(0, {}, None)
    free["bytes"] -= 1
    with pytest.raises(OSError, match="no space left on the disk"):
        logger.log(1, {}, None)
    assert len(run.lines) == 1


def test_older_folders_of_the_same_run_are_set_aside_and_no_others(tmp_path):
    current = tmp_path / "offline-run-20260101_000000-id"
    names = ["20250101_000000-id", "20250101_000000-id-1", "20250101_000000-other-id",
             "20250101_000000-idx", "2025-id"]  # fmt: skip
    for name in (current.name, *(f"offline-run-{name}" for name in names)):
        (tmp_path / name).mkdir()
    wandb_logger._set_aside(current, "id")
    aside = sorted(p.name for p in (tmp_path / wandb_logger.SUPERSEDED).iterdir())
    assert aside == [f"offline-run-{name}" for name in names[:2]]
    assert current.is_dir() and all((tmp_path / f"offline-run-{n}").is_dir() for n in names[2:])


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"kind": "simreg"}, "distilled/simreg/s3"),
        ({"kind": "simreg", "columns": {"losses": "a+b", "method": "m"}}, "distilled/a+b/s3"),
        ({"kind": "x", "columns": {"method": "m"}}, "distilled/m/s3"),
        ({"stage": "evaluate", "kind": "simreg"}, "distilled/simreg/evaluate/s3"),
        ({"role": "", "kind": ""}, "distill/s3"),
        ({"role": "simclr", "kind": "simclr"}, "simclr/s3"),
        ({"role": "", "stage": "evaluate", "kind": ""}, "evaluate/s3"),
    ],
)
def test_a_run_is_called_by_its_row_its_losses_and_its_seed_each_once(changes, name):
    assert run_name(record_of(**changes)) == name


def test_the_id_is_the_same_for_every_resume_and_holds_no_sign_that_wandb_refuses():
    assert wandb_id(record_of()) == "abababab-distill-s3"
    assert wandb_id(record_of(stage="a b/c:d", resumed=4)) == "abababab-a-b-c-d-s3"


def test_a_section_steps_aside_for_the_column_of_its_name_and_a_value_does_not():
    config = {"losses": {"a": 1}, "seed": 0, "student": "plain", "other": {"b": 2}}
    assert with_columns(config, {"losses": "a", "student": "resnet"}) == {
        "losses_settings": {"a": 1},
        "seed": 0,
        "student": "resnet",
        "other": {"b": 2},
        "losses": "a",
    }


@pytest.fixture
def sweep(monkeypatch):
    """Inside a sweep, whose runs are opened here; they are collected."""
    opened = []

    def open_run(mode, config, tags):
        opened.append((mode, dict(config), tuple(tags)))
        return runs.setdefault(len(opened), WandbRun())

    runs = {}
    monkeypatch.setattr(room, "active_run", lambda: None)
    monkeypatch.setattr(room, "open_shared_run", open_run)
    monkeypatch.setattr(room, "forget_wandb", lambda: opened.append("forgotten"))
    monkeypatch.setenv("WANDB_SWEEP_ID", "s")
    monkeypatch.setenv("WANDB_RUN_ID", "r")
    return opened, runs


def test_all_stages_of_a_sweeps_run_share_it_until_the_agent_asks_for_another(sweep, monkeypatch):
    opened, runs = sweep
    ours = Session({"name": "x"}, ("tag",), num_seeds=2)
    first = ours.shared_logger(record_of(), "offline", ("other",))
    second = ours.shared_logger(record_of(stage="report"), "offline", ())
    assert opened == [("offline", {"name": "x"}, ("tag",))]
    assert type(first) is SharedLogger and type(second) is SharedReport
    assert runs[1].metrics[0][0] == "distilled/s3/step"
    monkeypatch.setenv("WANDB_RUN_ID", "another")
    ours.shared_logger(record_of(), "offline", ())
    assert len(opened) == 2 and runs[1].ends == [0] and runs[2].ends == []


def test_outside_of_an_experiment_a_sweeps_run_has_the_config_and_the_tags_of_the_stage(sweep):
    opened, runs = sweep
    Session().shared_logger(record_of(config={"a": 1}), "online", ("tag",))
    ((mode, config, tags),) = opened
    assert (mode, config["a"], config["run"]["seed"], tags) == ("online", 1, 3, ("tag",))
    assert runs[1].metrics[0][0] == "distilled/step"


def test_after_an_error_the_next_stage_starts_anew(sweep):
    opened, runs = sweep
    ours = Session()
    ours.shared_logger(record_of(), "offline", ())
    ours.abandon()
    ours.shared_logger(record_of(), "offline", ())
    assert [o if o == "forgotten" else o[0] for o in opened] == ["offline", "forgotten", "offline"]
    assert runs[1].ends == []


@pytest.mark.parametrize("failed", [False, True])
def test_the_shared_run_ends_with_the_experiment_and_once(sweep, failed):
    _, runs = sweep
    before = current_session()
    with suppress(ZeroDivisionError), session({}, (), 1) as ours:
        ours.shared_logger(record_of(), "offline", ())
        assert current_session() is ours
        if failed:
            _ = 1 / 0
    assert runs[1].ends == [int(failed)] and current_session() is before
    ours.close(failed=False)
    assert runs[1].ends == [int(failed)]


def test_an_experiment_says_a_warning_once_and_a_stage_alone_each_time(caplog):
    for once, times in ((True, 1), (False, 3)):
        caplog.clear()
        ours = Session(once=once)
        for _ in range(3):
            ours.warn("it is so")
        assert [record.message for record in caplog.records] == ["it is so"] * times


def test_a_run_that_cannot_be_finished_is_said_and_harms_nothing(sweep, caplog):
    opened, runs = sweep
    with session({}, (), 1) as ours:
        ours.shared_logger(record_of(), "offline", ())
        runs[1].finish = lambda exit_code: Path("nowhere/at/all").read_text()
    assert "wandb did not finish" in caplog.text and "local logs are complete" in caplog.text
    assert opened[-1] == "forgotten"
