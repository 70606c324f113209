import json
import os
import shutil
import threading
from types import SimpleNamespace

import pytest

from ssdistill.chain import recording
from ssdistill.chain.recording import execute
from ssdistill.chain.stages import VERSIONS, Identity, Stage
from ssdistill.errors import UserError
from ssdistill.record.run import load_run, read_metrics
from ssdistill.record.tracker import TrackingSettings
from ssdistill.train.loop import CHECKPOINT

IDENTITY = Identity("tiny", "smoke", "e" * 64)
TRACKING = TrackingSettings(wandb="disabled")


def make_stage(**changes):
    facts = {
        "role": "teacher",
        "kind": "pretrain",
        "config": {"steps": 3, "optim": {"lr": 0.1, "kind": "sgd"}},
        "fingerprint": "f" * 64,
        "seed": 0,
    }
    return Stage(**(facts | changes))


def run_stage(stage, root, body):
    return execute(stage, root, body, IDENTITY, TRACKING)


def nothing(stage, tracker):
    return {}


@pytest.mark.parametrize(
    "change",
    [
        {"config": {"steps": 4, "optim": {"lr": 0.1, "kind": "sgd"}}},
        {"config": {"steps": 3, "optim": {"lr": 0.2, "kind": "sgd"}}},
        {"kind": "distill"},
        {"fingerprint": "0" * 64},
        {"parents": {"teacher": make_stage(kind="initialize")}},
    ],
    ids=["config", "nested config", "kind", "data", "parent"],
)
def test_the_digest_changes_with_what_decides_the_outcome(change):
    assert make_stage(**change).digest != make_stage().digest


def test_the_digest_changes_with_that_of_any_ancestor():
    def chain(lr):
        root = make_stage(config={"lr": lr})
        return make_stage(parents={"model": make_stage(parents={"model": root})})

    assert chain(1).digest != chain(2).digest
    assert chain(1).digest == chain(1).digest


def test_the_digest_changes_with_the_part_a_parent_plays():
    parent = make_stage()
    as_model, as_teacher = (make_stage(parents={part: parent}) for part in ("model", "teacher"))
    assert as_model.digest != as_teacher.digest


def test_the_digest_changes_with_the_version_of_the_code(monkeypatch):
    before = make_stage().digest
    monkeypatch.setitem(VERSIONS, "pretrain", VERSIONS["pretrain"] + 1)
    assert make_stage().digest != before


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 5},
        {"role": "control"},
        {"config": {"optim": {"kind": "sgd", "lr": 0.1}, "steps": 3}},
    ],
    ids=["seed", "role", "order of keys"],
)
def test_the_digest_does_not_change_with_seed_role_or_order_of_keys(change):
    assert make_stage(**change).digest == make_stage().digest


def test_seeds_share_a_folder_and_have_one_each(runs):
    first, second = make_stage(seed=0).folder(runs), make_stage(seed=1).folder(runs)
    assert first.parent == second.parent and first != second
    assert first.parent.name == f"pretrain-{make_stage().digest[:8]}"


def test_a_stage_is_done_and_recorded(runs):
    stage = make_stage(seed=3)
    assert stage.status(runs) == "missing"
    record = run_stage(stage, runs, lambda stage, tracker: {"loss/total": 0.5})
    assert stage.status(runs) == record.status == "finished"
    assert record.metrics == {"loss/total": 0.5}
    assert (record.stage, record.role, record.seed) == ("pretrain", "teacher", 3)
    assert (record.digest, record.fingerprint) == (stage.digest, "f" * 64)
    assert (record.name, record.profile, record.config) == ("tiny", "smoke", stage.config)
    assert record.group == f"tiny-{'e' * 8}"


@pytest.mark.parametrize(
    "work, config, kind",
    [
        ("pretrain", {"method": {"kind": "byol", "steps": 3}}, "byol"),
        ("distill", {"training": {"losses": {"a": {"kind": "kd"}, "b": {"kind": "at"}}}}, "kd+at"),
        ("compress", {"step": {"kind": "prune"}}, "prune"),
        ("load", {"teacher": {"kind": "timm", "name": "resnet18"}}, "timm"),
        ("initialize", {"encoder": {"name": "resnet10t"}}, ""),
    ],
)
def test_the_record_says_which_stage_by_which_method_in_which_role(runs, work, config, kind):
    stage = make_stage(kind=work, role="row", config=config)
    run_stage(stage, runs, nothing)
    content = json.loads((stage.folder(runs) / "run.json").read_text())
    assert (content["stage"], content["kind"], content["role"]) == (work, kind, "row")


def test_a_stage_that_version_0_1_finished_is_used_again(runs):
    stage = make_stage(config={"method": {"kind": "simclr", "steps": 3}})
    run_stage(stage, runs, lambda stage, tracker: {"loss/total": 0.5})
    path = stage.folder(runs) / "run.json"
    content = json.loads(path.read_text())
    # As 0.1.0 wrote it: the role where the kind belongs.
    old = {k: v for k, v in content.items() if k not in ("role", "columns", "checksum")}
    path.write_text(json.dumps(old | {"schema": 1, "kind": "teacher"}))

    def must_not_run(stage, tracker):
        raise AssertionError("done twice")

    record = run_stage(stage, runs, must_not_run)
    assert (record.status, record.kind, record.role) == ("finished", "simclr", "teacher")
    assert record.metrics == {"loss/total": 0.5}
    assert run_stage(make_stage(kind="distill", parents={"teacher": stage}), runs, nothing).parents


def test_the_digests_are_those_of_version_0_1(monkeypatch):
    monkeypatch.setitem(VERSIONS, "pretrain", 3)
    monkeypatch.setitem(VERSIONS, "distill", 2)
    assert make_stage().digest.startswith("354be7c8ab2845d2")
    child = make_stage(kind="distill", role="distilled", parents={"teacher": make_stage()})
    assert child.digest.startswith("9180ca635c148af7")


def test_a_finished_stage_is_not_done_again(runs):
    done = run_stage(make_stage(), runs, lambda stage, tracker: {"x": 1.0})

    def must_not_run(stage, tracker):
        raise AssertionError("done twice")

    assert run_stage(make_stage(role="control"), runs, must_not_run) == done
    assert run_stage(make_stage(seed=1), runs, nothing).metrics == {}


def test_a_failed_stage_says_why_and_is_tried_again(runs):
    def fails(stage, tracker):
        raise UserError("the data is gone")

    with pytest.raises(UserError, match="the data is gone"):
        run_stage(make_stage(), runs, fails)
    record = make_stage().record(runs)
    assert record.status == "failed" and "the data is gone" in record.reason
    assert run_stage(make_stage(), runs, nothing).status == "finished"


def test_an_interrupted_stage_keeps_its_checkpoint_and_goes_on(runs):
    def cut(stage, tracker):
        tracker.log(0, {"loss/total": 2.0})
        (tracker.run.folder / CHECKPOINT).write_bytes(b"half")
        raise KeyboardInterrupt

    def goes_on(stage, tracker):
        assert (tracker.run.folder / CHECKPOINT).read_bytes() == b"half"
        tracker.log(1, {"loss/total": 1.0})
        return {"loss/total": 1.0}

    stage = make_stage()
    with pytest.raises(KeyboardInterrupt):
        run_stage(stage, runs, cut)
    assert stage.status(runs) == "interrupted"
    record = run_stage(stage, runs, goes_on)
    assert (record.status, record.resumed, record.reason) == ("finished", 1, None)
    assert [line["step"] for line in read_metrics(stage.folder(runs))] == [0, 1]
    assert not (stage.folder(runs) / CHECKPOINT).exists()


def test_lineage_names_each_parents_weights(runs):
    def makes_model(stage, tracker):
        tracker.log_model("teacher", tracker.run.folder / "model", "a" * 64)
        (tracker.run.folder / "model").mkdir()
        return {}

    teacher = make_stage(seed=7)
    run_stage(teacher, runs, makes_model)
    record = run_stage(make_stage(kind="distill", parents={"teacher": teacher}), runs, nothing)
    assert record.parents == {"teacher": {"digest": teacher.digest, "seed": 7, "sha256": "a" * 64}}


def test_a_folder_with_another_stage_in_it_is_not_taken_for_this_one(runs):
    stage = make_stage()
    run_stage(stage, runs, nothing)
    other = make_stage(config={"steps": 99})
    # As if the first eight digits of two hashes were the same.
    stage.folder(runs).parent.rename(other.folder(runs).parent)
    with pytest.raises(UserError, match="a different hash; move it away"):
        run_stage(other, runs, nothing)


def test_a_second_process_waits_and_takes_what_the_first_has_made(runs, monkeypatch):
    inside, told, calls, results = threading.Event(), threading.Event(), [], []
    console = SimpleNamespace(print=lambda *texts, **style: told.set())
    monkeypatch.setattr(recording, "console", console)

    def slow(stage, tracker):
        calls.append(stage)
        inside.set()
        told.wait(timeout=20)
        return {"made": len(calls)}

    def start():
        thread = threading.Thread(
            target=lambda: results.append(run_stage(make_stage(), runs, slow))
        )
        thread.start()
        return thread

    first = start()
    assert inside.wait(timeout=20)
    second = start()
    first.join(timeout=60)
    second.join(timeout=60)
    assert told.is_set()
    assert len(calls) == 1
    assert [record.metrics for record in results] == [{"made": 1}] * 2


def test_the_lock_is_freed_by_a_stage_that_fails(runs):
    def fails(stage, tracker):
        raise RuntimeError("broken")

    for _ in range(2):
        with pytest.raises(RuntimeError, match="broken"):
            run_stage(make_stage(), runs, fails)
    assert load_run(make_stage().folder(runs)).resumed == 1


DAMAGED_RECORDS = [
    b"",
    b"{",
    b"[]",
    b"null",
    b'{"schema": 1}',
    b'{"schema": 1, "stage": "pretrain", "digest": "x", "seed": 0, "status": "done"}',
    b'{"schema": 1, "stage": "pretrain", "digest": "x", "seed": 0, "metrics": []}',
    b'{"schema": 1, "stage": "pretrain", "digest": "x", "seed": 0, "metrics": {"a": "b"}}',
    b'{"schema": 1, "stage": "pretrain", "digest": "x", "seed": 0, "artifacts": {"model": 1}}',
    b'{"schema": 1, "stage": "pretrain", "digest": "x", "seed": 0, "wall_seconds": "x"}',
]


@pytest.mark.parametrize("content", DAMAGED_RECORDS, ids=range(len(DAMAGED_RECORDS)))
def test_a_stage_with_a_damaged_record_is_made_anew_and_the_old_one_kept(runs, content, capsys):
    stage = make_stage()
    run_stage(stage, runs, nothing)
    folder = stage.folder(runs)
    (folder / "weights").write_text("three days of work")
    (folder / "run.json").write_bytes(content)
    assert stage.status(runs) == "damaged"
    assert run_stage(stage, runs, nothing).status == "finished"
    old = folder.with_name("damaged-s0-1")
    assert (old / "weights").read_text() == "three days of work"
    assert (old / "run.json").read_bytes() == content
    said = capsys.readouterr().err
    assert "is damaged" in said and str(old) in said


def test_a_stage_may_be_damaged_more_than_once(runs):
    stage = make_stage()
    for _ in range(3):
        run_stage(stage, runs, nothing)
        (stage.folder(runs) / "run.json").write_text("{")
    run_stage(stage, runs, nothing)
    names = sorted(p.name for p in stage.folder(runs).parent.glob("damaged-*"))
    assert names == ["damaged-s0-1", "damaged-s0-2", "damaged-s0-3"]


def test_a_record_of_a_later_version_is_not_touched(runs):
    stage = make_stage()
    run_stage(stage, runs, nothing)
    record = stage.folder(runs) / "run.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"schema": 99}))
    with pytest.raises(UserError, match="schema 99"):
        run_stage(stage, runs, nothing)
    assert json.loads(record.read_text())["schema"] == 99


@pytest.mark.parametrize("kind", ["file", "link", "pipe"])
def test_what_stands_in_the_place_of_a_stage_is_named_and_not_removed(runs, kind):
    stage = make_stage()
    folder = stage.folder(runs)
    folder.parent.mkdir(parents=True)
    if kind == "file":
        folder.write_text("mine")
    elif kind == "link":
        folder.symlink_to(folder)
    else:
        os.mkfifo(folder)
    with pytest.raises(UserError, match=r"found a file; move it away: mv ") as caught:
        run_stage(stage, runs, nothing)
    assert str(folder) in str(caught.value) and os.path.lexists(folder)


@pytest.mark.parametrize("kind", ["folder", "link", "pipe"])
def test_what_stands_in_the_place_of_a_lock_is_named(runs, kind):
    stage = make_stage()
    lock = stage.folder(runs).with_name(".s0.lock")
    lock.parent.mkdir(parents=True)
    if kind == "folder":
        lock.mkdir()
    elif kind == "link":
        lock.symlink_to(lock)
    else:
        os.mkfifo(lock)
    with pytest.raises(UserError, match=r"expected a lock file; remove what is there: rm -r"):
        run_stage(stage, runs, nothing)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"seed": 1}, "holds a stage of seed 0; move it away"),
        ({"config": {"steps": 4}}, "a different hash; move it away"),
        ({"kind": "distill"}, "a different hash; move it away"),
    ],
)
def test_a_copy_of_another_stage_is_not_taken_for_its_own(runs, change, words):
    first, other = make_stage(), make_stage(**change)
    run_stage(first, runs, nothing)
    other.folder(runs).parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(first.folder(runs), other.folder(runs))
    assert first.status(runs) == "finished"
    for call in (other.record, other.status, lambda root: run_stage(other, root, nothing)):
        with pytest.raises(UserError, match=words):
            call(runs)


def test_a_parent_that_was_deleted_meanwhile_is_named(runs):
    parent = make_stage()
    run_stage(parent, runs, nothing)
    shutil.rmtree(parent.folder(runs))
    child = make_stage(kind="distill", parents={"teacher": parent})
    with pytest.raises(UserError, match="deleted while the run needed it") as error:
        run_stage(child, runs, nothing)
    assert str(parent.folder(runs)) in str(error.value)
