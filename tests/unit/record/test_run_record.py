import errno
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ssdistill import files
from ssdistill.errors import UserError
from ssdistill.record.run import Run, load_run, read_metrics
from ssdistill.record.run_record import role_of

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
    assert (record.status, record.profile, record.schema) == ("finished", "smoke", 2)
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
    (tmp_path / "run.json").write_text(
        json.dumps(content | {"wall_seconds": 100.0, "checksum": ""})
    )
    Run(tmp_path, **FACTS).finish()
    assert load_run(tmp_path).wall_seconds >= 100.0


def test_wall_seconds_are_those_since_the_run_was_opened(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("ssdistill.record.run.time.monotonic", lambda: now[0])
    for opened, seconds in ((1000.0, 7.5), (5000.0, 9.75)):
        now[0] = opened
        run = Run(tmp_path, **FACTS)
        now[0] += 5.0
        run.save()
        now[0] += 2.5 if opened == 1000.0 else -2.75
        run.fail("for a reason")
        assert load_run(tmp_path).wall_seconds == seconds


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
    with pytest.raises(UserError, match="no such file or folder; name the folder of a run"):
        load_run(tmp_path)


OLD = {
    "stage": "distill",
    "digest": "ab" * 32,
    "seed": 1,
    "kind": "distilled",
    "name": "quickstart",
    "group": "quickstart-12345678",
    "profile": "reduced",
    "status": "finished",
    "started": "2026-01-01T00:00:00+00:00",
    "wall_seconds": 1.5,
    "resumed": 0,
    "reason": None,
    "metrics": {"loss/total": 0.5, "train/steps": 20, "grad/norm": None},
    "fingerprint": "f" * 64,
    "parents": {"teacher": {"digest": "cd" * 32, "seed": 1, "sha256": "e" * 64}},
    "artifacts": {"distilled": {"file": "model", "sha256": "d" * 64, "parent_sha256": None}},
    "config": {"training": {"losses": {"a": {"kind": "simreg"}, "b": {"kind": "infonce"}}}},
    "provenance": {"git": None, "packages": {"torch": "2.9"}, "hardware": {"cores": 2}},
    "schema": 1,
}
"""A record as version 0.1.0 wrote it."""


def written(folder, **changes):
    (folder / "run.json").write_text(json.dumps({**OLD, **changes}))
    return folder


def test_a_record_of_version_0_1_is_read_in_the_terms_of_this_one(tmp_path):
    record = load_run(written(tmp_path))
    assert (record.stage, record.kind, record.role) == ("distill", "simreg+infonce", "distilled")
    assert (record.schema, record.columns) == (2, {})
    assert record.metrics == OLD["metrics"] and record.parents == OLD["parents"]
    assert record.artifacts == OLD["artifacts"] and record.config == OLD["config"]
    assert (record.status, record.digest, record.seed) == ("finished", "ab" * 32, 1)


@pytest.mark.parametrize(
    "config, kind",
    [
        ({"method": {"kind": "byol"}, "encoder": {}}, "byol"),
        ({"step": {"kind": "prune"}, "distill": {}}, "prune"),
        ({"teacher": {"kind": "timm", "name": "vit_tiny"}}, "timm"),
        ({"encoder": {"name": "resnet10t"}}, ""),
        ({"training": {"losses": {"a": {"kind": "kd"}, "b": {"kind": "kd"}}}}, "kd"),
        ({"training": {"losses": 3}, "method": [], "step": {"kind": 4}}, ""),
    ],
)
def test_the_kind_of_an_old_record_is_that_of_its_configuration(tmp_path, config, kind):
    assert load_run(written(tmp_path, config=config)).kind == kind


def test_a_stage_that_version_0_1_interrupted_goes_on(tmp_path):
    written(tmp_path, status="interrupted", wall_seconds=100.0)
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "loss/total": 1.0}\n')
    run = Run(tmp_path, **FACTS, kind="simreg+infonce", role="distilled")
    run.finish()
    content = json.loads((tmp_path / "run.json").read_text())
    assert (content["schema"], content["role"], content["resumed"]) == (2, "distilled", 1)
    assert content["wall_seconds"] >= 100.0 and content["artifacts"] == OLD["artifacts"]
    assert load_run(tmp_path).kind == "simreg+infonce"


@pytest.mark.parametrize(
    "content, role",
    [
        ({"kind": "teacher"}, "teacher"),
        (OLD, "distilled"),
        ({**OLD, "schema": 2, "role": "pruned", "kind": "prune"}, "pruned"),
        ({"schema": 2, "kind": "prune"}, ""),
        ({"kind": 3}, ""),
        ([], ""),
    ],
)
def test_the_role_is_found_in_old_and_new_records(tmp_path, content, role):
    (tmp_path / "run.json").write_text(json.dumps(content))
    assert role_of(tmp_path) == role
    assert role_of(tmp_path / "nothing") == ""


DAMAGED = {
    "cut": json.dumps(OLD)[:200],
    "empty": "",
    "binary": b"\x80\x00\xff",
    "list": "[]",
    "text": '"run"',
    "nested": "[" * 100_000,
    "long number": '{"schema": ' + "9" * 5000 + "}",
    "no schema": json.dumps({k: v for k, v in OLD.items() if k != "schema"}),
    "schema true": json.dumps({**OLD, "schema": True}),
    "schema 1.0": json.dumps({**OLD, "schema": 1.0}),
    "schema list": json.dumps({**OLD, "schema": [1]}),
    "later schema": json.dumps({**OLD, "schema": 99}),
    "no digest": json.dumps({k: v for k, v in OLD.items() if k != "digest"}),
    "seed": json.dumps({**OLD, "seed": "1"}),
    "status": json.dumps({**OLD, "status": "done"}),
    "metrics list": json.dumps({**OLD, "metrics": [1]}),
    "metrics text": json.dumps({**OLD, "metrics": {"loss/total": "0.5"}}),
    "metrics nan": json.dumps({**OLD, "metrics": {"loss/total": float("nan")}}),
    "metrics null": json.dumps({**OLD, "metrics": None}),
    "wall": json.dumps({**OLD, "wall_seconds": "long"}),
    "resumed": json.dumps({**OLD, "resumed": 1.5}),
    "parents": json.dumps({**OLD, "parents": {"teacher": "x"}}),
    "artifacts": json.dumps({**OLD, "artifacts": {"teacher": {"file": "model"}}}),
    "config": json.dumps({**OLD, "config": []}),
    "hardware": json.dumps({**OLD, "provenance": {"hardware": 3}}),
    "packages": json.dumps({**OLD, "provenance": {"packages": ["torch"]}}),
    "commit": json.dumps({**OLD, "provenance": {"git": {"sha": 3}}}),
    "kind": json.dumps({**OLD, "kind": 3}),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_record_is_one_line_that_names_file_and_remedy(tmp_path, content):
    content = content if isinstance(content, bytes) else content.encode()
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(UserError) as refused:
        load_run(tmp_path)
    said = str(refused.value)
    assert said.startswith(f"{tmp_path / 'run.json'}: ") and "\n" not in said
    assert f"move the folder {tmp_path} away" in said


def test_a_record_that_is_a_folder_is_named(tmp_path):
    (tmp_path / "run.json").mkdir()
    with pytest.raises(UserError, match=r"run\.json: cannot be read"):
        load_run(tmp_path)


def test_a_file_in_the_place_of_a_run_is_named(tmp_path):
    (tmp_path / "s0").write_text("")
    for folder in (tmp_path / "s0", tmp_path / "s0" / "deeper"):
        with pytest.raises(UserError, match=f"{tmp_path / 's0'}: expected a folder, found a file"):
            Run(folder, **FACTS)


LINES = {
    "half a line": b'{"ste',
    "binary": b"\x00\xff\x80",
    "empty": b"",
    "list": b"[1, 2]",
    "number": b"3",
    "no step": b'{"loss/total": 1.0}',
    "step text": b'{"step": "1"}',
    "step fraction": b'{"step": 1.5}',
    "step null": b'{"step": null}',
    "step true": b'{"step": true}',
    "epoch text": b'{"step": 1, "epoch": "x"}',
    "text": b'{"step": 1, "loss/total": "x"}',
    "nan": b'{"step": 1, "loss/total": NaN}',
    "beyond floats": b'{"step": 1, "loss/total": 1e999}',
    "object": b'{"step": 1, "loss/total": {}}',
    "nested": b"[" * 100_000,
}


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_a_damaged_line_is_named_with_what_to_do(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 0}\n' + line + b'\n{"step": 2}\n')
    with pytest.raises(UserError) as refused:
        read_metrics(tmp_path)
    said = str(refused.value)
    assert said.startswith(f"{path}, line 2: damaged (") and "\n" not in said
    assert "delete the line" in said
    written(tmp_path)
    with pytest.raises(UserError, match="line 2"):
        Run(tmp_path, **FACTS)


def test_metrics_that_are_a_folder_are_named(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(UserError, match=r"metrics\.jsonl: cannot be read"):
        Run(tmp_path, **FACTS)


def test_true_and_false_are_stored_as_numbers(tmp_path):
    run = Run(tmp_path, **FACTS)
    run.log(0, {"compress/accepted": True})
    run.finish({"compress/accepted": False})
    assert '"compress/accepted": 1}' in run.metrics_path.read_text()
    assert load_run(tmp_path).metrics == {"compress/accepted": 0}


def finished_record(folder):
    run = Run(folder, **FACTS, name="quickstart", config={"losses": {"a": {"weight": 1.0}}})
    run.add_artifact("student", "student", "d" * 64)
    run.finish({"probe/linear/top1": 91.5, "compress/params": 77})
    return folder / "run.json"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('top1": 91.5', 'top1": 91.4'),
        ('params": 77', 'params": 78'),
        ('"seed": 1', '"seed": 0'),
        ('"weight": 1.0', '"weight": 2.0'),
        ('"started": "2', '"started": "3'),
        (' "status": "finished",', ""),
    ],
)
def test_a_finished_record_is_what_was_written(tmp_path, old, new):
    path = finished_record(tmp_path)
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    with pytest.raises(UserError, match=r"run\.json: .*checksum.*; move the folder"):
        load_run(tmp_path)


def test_the_order_of_a_record_and_its_blanks_do_not_matter(tmp_path):
    path = finished_record(tmp_path)
    content = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(content.items()))))
    assert load_run(tmp_path).metrics["probe/linear/top1"] == 91.5


def test_a_record_of_a_version_without_checksums_is_read(tmp_path):
    path = finished_record(tmp_path)
    content = json.loads(path.read_text())
    assert len(content.pop("checksum")) == 64
    content["metrics"]["compress/params"] = 78
    path.write_text(json.dumps(content))
    assert load_run(tmp_path).metrics["compress/params"] == 78


def test_only_a_finished_record_has_a_checksum(tmp_path):
    path = finished_record(tmp_path)
    with pytest.raises(ZeroDivisionError), Run(tmp_path, **FACTS):
        assert json.loads(path.read_text())["checksum"] == ""
        _ = 1 / 0
    assert (load_run(tmp_path).status, load_run(tmp_path).checksum) == ("failed", "")


def test_an_artifact_is_noted_relative_to_a_run_with_a_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Run(Path("runs/a"), stage="distill", digest="d" * 64, seed=0) as run:
        run.add_artifact("student", Path("runs/a/model"), "0" * 64)
    assert load_run("runs/a").artifacts["student"]["file"] == "model"


def test_a_finished_record_knows_its_metrics(tmp_path):
    with Run(tmp_path, stage="distill", digest="d" * 64, seed=0) as run:
        run.log(0, {"loss/total": 1.0})
    content = (tmp_path / "metrics.jsonl").read_bytes()
    assert load_run(tmp_path).metrics_sha256 == hashlib.sha256(content).hexdigest()
