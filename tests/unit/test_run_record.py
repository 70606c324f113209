import errno
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from ssdistill import files
from ssdistill.errors import UserError
from ssdistill.record.run import Run, load_run, read_metrics

FACTS = {"stage": "distill", "digest": "ab" * 32, "seed": 1}


def steps(folder):
    return [line["step"] for line in read_metrics(folder)]


def test_record_holds_what_was_known_and_what_came_out(tmp_path):
    run = Run(
        tmp_path / "new" / "s1",
        **FACTS,
        kind="cosine",
        name="quickstart",
        profile="smoke",
        config={"losses": {"cosine": {"weight": 1.0}}},
        fingerprint="f" * 64,
        parents={"teacher": {"sha256": "c" * 64}},
    )
    (run.folder / "student").mkdir()
    run.add_artifact("student", run.folder / "student", "d" * 64, parent_sha256="c" * 64)
    run.finish({"probe/linear/top1": torch.tensor(91.5), "compress/params": 77})

    record = load_run(run.folder)
    assert record == run.record
    assert (record.status, record.profile, record.schema) == ("finished", "smoke", 1)
    assert record.metrics == {"probe/linear/top1": 91.5, "compress/params": 77}
    assert record.artifacts["student"] == {
        "file": "student",
        "sha256": "d" * 64,
        "parent_sha256": "c" * 64,
    }
    assert record.parents == {"teacher": {"sha256": "c" * 64}}
    assert "torch" in record.provenance["packages"]
    assert record.started.endswith("+00:00")
    assert str(tmp_path) not in (run.folder / "run.json").read_text()


def test_metrics_are_plain_json_lines_with_null_for_what_is_not_finite(tmp_path):
    run = Run(tmp_path, **FACTS)
    run.log(0, {"loss/total": torch.tensor(0.5), "grad/norm": np.float32("nan")}, epoch=0)
    run.log(10, {"loss/total": float("inf"), "compress/params": 3})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line, parse_constant=pytest.fail) for line in lines] == [
        {"step": 0, "epoch": 0, "loss/total": 0.5, "grad/norm": None},
        {"step": 10, "loss/total": None, "compress/params": 3},
    ]


def test_a_step_cannot_be_logged_twice(tmp_path):
    run = Run(tmp_path, **FACTS)
    run.log(5, {"loss/total": 1.0})
    for step in (5, 3):
        with pytest.raises(ValueError, match="rewind"):
            run.log(step, {"loss/total": 1.0})
    assert steps(tmp_path) == [5]


def test_resume_goes_on_where_the_checkpoint_was(tmp_path):
    first = Run(tmp_path, **FACTS)
    for step in range(10):
        first.log(step, {"loss/total": step})
    second = Run(tmp_path, **FACTS)
    second.rewind(6)
    assert (second.last_step, second.furthest_step) == (5, 9)
    for step in range(6, 12):
        second.log(step, {"loss/total": step})
    assert steps(tmp_path) == list(range(12))
    assert second.record.resumed == 1
    assert second.record.started == first.record.started


def test_rewind_to_the_start_forgets_everything(tmp_path):
    run = Run(tmp_path, **FACTS)
    run.log(0, {"loss/total": 1.0})
    run.rewind(0)
    assert run.last_step is None
    run.log(0, {"loss/total": 2.0})
    assert read_metrics(tmp_path) == [{"step": 0, "loss/total": 2.0}]


def test_wall_seconds_add_up_over_resumes(tmp_path):
    Run(tmp_path, **FACTS).finish()
    content = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(content | {"wall_seconds": 100.0}))
    Run(tmp_path, **FACTS).finish()
    assert load_run(tmp_path).wall_seconds >= 100.0


@pytest.mark.parametrize("tail", ['{"step": 2, "loss/to', '{"step": 2}', "\x00\x00"])
def test_half_line_after_a_kill_is_dropped(tmp_path, tail):
    run = Run(tmp_path, **FACTS)
    for step in range(2):
        run.log(step, {"loss/total": 1.0})
    with open(run.metrics_path, "a") as file:
        file.write(tail)
    assert steps(tmp_path) == [0, 1]
    resumed = Run(tmp_path, **FACTS)
    resumed.log(2, {"loss/total": 1.0})
    assert steps(tmp_path) == [0, 1, 2]


def test_lines_survive_a_kill_of_the_process(tmp_path):
    code = (
        "import os, sys; from ssdistill.record.run import Run\n"
        f"run = Run(sys.argv[1], **{FACTS!r})\n"
        "for step in range(50): run.log(step, {'loss/total': 1.0})\n"
        "os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=os.getcwd(), check=False)
    assert done.returncode == -9
    assert steps(tmp_path) == list(range(50))
    assert load_run(tmp_path).status == "running"


def test_damage_in_the_middle_names_the_line(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"ste\n{"step": 2}\n')
    with pytest.raises(UserError, match="line 2"):
        read_metrics(tmp_path)


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (ValueError("loss is\nnot finite"), "failed", "ValueError: loss is not finite"),
        (KeyboardInterrupt(), "interrupted", "KeyboardInterrupt"),
        (SystemExit(143), "interrupted", "SystemExit"),
    ],
)
def test_context_manager_records_how_it_ended(tmp_path, error, status, reason):
    with pytest.raises(type(error)), Run(tmp_path, **FACTS) as run:
        run.log(0, {"loss/total": 1.0})
        raise error
    record = load_run(tmp_path)
    assert (record.status, record.reason) == (status, reason)


def test_context_manager_keeps_the_metrics_of_an_explicit_finish(tmp_path):
    with Run(tmp_path, **FACTS) as run:
        run.finish({"probe/linear/top1": 90.0})
    assert load_run(tmp_path).metrics == {"probe/linear/top1": 90.0}
    with pytest.raises(ValueError, match="finished"):
        run.log(0, {"loss/total": 1.0})


@pytest.mark.parametrize("change", [{"seed": 2}, {"digest": "cd" * 32}, {"stage": "pretrain"}])
def test_folder_of_another_run_is_refused(tmp_path, change):
    Run(tmp_path, **FACTS).finish()
    with pytest.raises(UserError, match=next(iter(change))):
        Run(tmp_path, **FACTS | change)


def test_full_disk_names_the_folder(tmp_path, monkeypatch):
    run = Run(tmp_path, **FACTS)

    class Full:
        def write(self, _):
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self):
            pass

    run._file = Full()
    with pytest.raises(UserError, match=f"{tmp_path}.*no space"):
        run.log(0, {"loss/total": 1.0})


def test_failed_write_leaves_the_old_record_and_no_rubbish(tmp_path, monkeypatch):
    run = Run(tmp_path, **FACTS)
    before = (tmp_path / "run.json").read_text()

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(UserError, match="no space"):
        run.finish({"probe/linear/top1": 90.0})
    assert (tmp_path / "run.json").read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"stage": "distill"}', '{"schema": 99}'])
def test_unreadable_record_names_the_file(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(UserError, match=r"run\.json"):
        load_run(tmp_path)


def test_missing_record_names_the_file(tmp_path):
    with pytest.raises(UserError, match="no such run"):
        load_run(tmp_path)
