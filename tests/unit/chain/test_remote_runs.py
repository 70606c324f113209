import json
from pathlib import Path

import fsspec
import pytest

from ssdistill.chain.remote_runs import CACHE, RemoteRuns
from ssdistill.chain.stages import Stage
from ssdistill.errors import UserError
from ssdistill.files import folder_or_address

PARENT = Stage("teacher", "pretrain", {}, "f", 0)
CHILD = Stage("distilled", "distill", {}, "f", 0, {"teacher": PARENT})


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """``machine(name)``: the remote runs as a machine sees them, with a cache of its own."""
    url = f"memory://{tmp_path.name}/runs"

    def make(name, url=url):
        monkeypatch.setenv(CACHE, str(tmp_path / name))
        return RemoteRuns(url)

    return make


def write(remote: RemoteRuns, stage: Stage, status="finished", **files) -> Path:
    folder = stage.folder(remote.folder)
    for name, text in {"model/weights": "w", "run.json": json.dumps({"status": status})}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(files.get(name, text))
    return folder


def contents(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_a_path_is_no_address():
    assert folder_or_address("runs") == Path("runs")
    assert folder_or_address("s3://bucket/runs") == "s3://bucket/runs"


def test_a_stage_and_its_ancestors_travel(machine):
    a, b = machine("a"), machine("b")
    assert a.folder != b.folder
    for stage in (PARENT, CHILD):
        a.put(write(a, stage))
    with b.around(CHILD):
        for stage in (PARENT, CHILD):
            assert contents(stage.folder(b.folder)) == contents(stage.folder(a.folder))
            assert b.has(stage.folder(b.folder))


def test_what_is_interrupted_is_put_too_and_resumed_elsewhere(machine):
    a, b = machine("a"), machine("b")
    with pytest.raises(KeyboardInterrupt), a.around(CHILD):
        (write(a, CHILD, "interrupted") / "checkpoint.pt").write_text("half")
        raise KeyboardInterrupt
    with b.around(CHILD):
        folder = CHILD.folder(b.folder)
        assert (folder / "checkpoint.pt").read_text() == "half"
        (folder / "checkpoint.pt").unlink()
        write(b, CHILD)
    a.fetch(CHILD.folder(a.folder))
    assert contents(CHILD.folder(a.folder)) == contents(folder)
    assert "checkpoint.pt" not in contents(folder)


def test_a_transfer_cut_short_leaves_no_record(machine, monkeypatch):
    a, b = machine("a"), machine("b")
    folder = write(a, CHILD)
    a.put(folder)
    system, put = type(a._system), type(a._system).put_file

    def cut(self, source, place, **options):
        if place.endswith("weights"):
            raise OSError("connection lost")
        return put(self, source, place, **options)

    monkeypatch.setattr(system, "put_file", cut)
    with pytest.raises(UserError, match=r"--runs memory://.*connection lost"):
        a.put(folder)
    b.fetch(CHILD.folder(b.folder))
    assert not CHILD.folder(b.folder).exists()
    assert contents(folder)  # what is finished here stays, and is put by the next run
    assert not a.has(folder)


def test_a_fetch_cut_short_leaves_what_was_there(machine, monkeypatch):
    a, b = machine("a"), machine("b")
    a.put(write(a, CHILD))
    folder = write(b, CHILD, "interrupted", **{"model/weights": "old"})
    before = contents(folder)

    def cut(*_, **options):
        raise OSError("connection lost")

    monkeypatch.setattr(type(b._system), "get_file", cut)
    with pytest.raises(UserError, match="connection lost"):
        b.fetch(folder)
    assert contents(folder) == before


def test_a_finished_stage_is_not_replaced_by_an_interrupted_one(machine):
    a, b = machine("a"), machine("b")
    a.put(write(a, CHILD, "interrupted"))
    before = contents(write(b, CHILD))
    b.fetch(CHILD.folder(b.folder))
    assert contents(CHILD.folder(b.folder)) == before


def test_a_stage_that_is_made_anew_is_gone_remotely(machine):
    a = machine("a")
    folder = write(a, CHILD)
    a.put(folder)
    a.forget(folder)
    a.forget(folder)
    assert not a.has(folder)


@pytest.mark.parametrize("name", ["../../../../evil", "model/../../evil", "a\\b", "/evil"])
def test_no_file_is_written_outside_of_the_folder(machine, monkeypatch, name):
    a, b = machine("a"), machine("b")
    a.put(write(a, CHILD))
    found = f"{b._remote(CHILD.folder(b.folder))}/{name}"
    monkeypatch.setattr(type(b._system), "find", lambda self, path: [found])
    with pytest.raises(UserError, match=r"holds .*; remove it"):
        b.fetch(CHILD.folder(b.folder))
    assert not list(b.folder.parent.rglob("evil")) and not CHILD.folder(b.folder).exists()


def test_access_is_checked_without_a_trace(machine):
    a = machine("a")
    a.check()
    assert fsspec.filesystem("memory").find(a._path) == []


@pytest.mark.parametrize("url", ["nothing://x/y", "file:///proc/nowhere/runs"])
def test_what_cannot_be_reached_is_one_line(machine, url):
    with pytest.raises(UserError, match=f"--runs {url}: ") as failed:
        machine("a", url).check()
    assert "\n" not in str(failed.value)
