import builtins
import errno
import io
import os
from pathlib import Path

import pytest
import torch

from ssdistill.errors import UserError
from ssdistill.train import checkpoint
from ssdistill.train.checkpoint import load_checkpoint, save_checkpoint


@pytest.fixture
def path(tmp_path):
    """A checkpoint that says step 1."""
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"step": 1, "task": {"w": torch.ones(2)}})
    return path


def test_a_checkpoint_comes_back_as_it_was(path):
    state = load_checkpoint(path)
    assert state["step"] == 1 and torch.equal(state["task"]["w"], torch.ones(2))
    assert [p.name for p in path.parent.iterdir()] == ["checkpoint.pt"]


def test_where_there_is_none_none_comes_back(tmp_path):
    assert load_checkpoint(tmp_path / "checkpoint.pt") is None


@pytest.mark.parametrize("before", ["", "losses.dino."])
def test_buffers_of_the_first_release_have_their_present_names(tmp_path, before):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"step": 1, "task": {f"{before}centre_K": torch.ones(2), "w": 1}})
    assert load_checkpoint(path)["task"].keys() == {f"{before}center_K", "w"}


def test_a_kill_half_way_leaves_the_old_checkpoint(path, monkeypatch):
    def half(state, file):
        file.write(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(path, {"step": 2})
    assert load_checkpoint(path)["step"] == 1


def test_the_new_checkpoint_is_on_the_disk_before_it_takes_the_old_ones_place(path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("fsync"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("replace"), replace(a, b)))
    save_checkpoint(path, {"step": 2})
    assert calls == ["fsync", "replace"]
    assert load_checkpoint(path)["step"] == 2


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT], ids=["full disk", "quota"])
def test_no_space_is_the_users_to_mend_and_costs_nothing(path, monkeypatch, number):
    def full(fd):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="no disk space for the checkpoint") as caught:
        save_checkpoint(path, {"step": 2})
    assert str(path.parent) in str(caught.value)
    assert load_checkpoint(path)["step"] == 1
    assert [p.name for p in path.parent.iterdir()] == ["checkpoint.pt"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("numbers", [1, 100_000], ids=["at the flush", "while writing"])
def test_a_disk_that_fills_while_writing_is_recognized(path, monkeypatch, numbers):
    def on_full_disk(name, mode):
        return builtins.open("/dev/full", mode)

    monkeypatch.setattr(checkpoint, "open", on_full_disk, raising=False)
    with pytest.raises(UserError, match="no disk space for the checkpoint"):
        save_checkpoint(path, {"step": 2, "task": torch.zeros(numbers)})
    assert load_checkpoint(path)["step"] == 1


class Filling(io.FileIO):
    """A file on a disk that holds so many bytes of it."""

    def __init__(self, name, room):
        super().__init__(name, "wb")
        self.room = room

    def write(self, data):
        self.room -= super().write(memoryview(data)[: self.room])
        if self.room <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("room", [1, 1000, 100_000, 400_000])
def test_a_disk_that_fills_within_a_tensor_is_recognized(path, monkeypatch, room):
    monkeypatch.setattr(checkpoint, "open", lambda name, _: Filling(name, room), raising=False)
    with pytest.raises(UserError, match="no disk space for the checkpoint"):
        save_checkpoint(path, {"step": 2, "task": torch.zeros(50_000), "more": torch.ones(50_001)})
    assert load_checkpoint(path)["step"] == 1
    assert [p.name for p in path.parent.iterdir()] == ["checkpoint.pt"]


def test_another_error_stays_what_it_is(path, monkeypatch):
    def broken(fd):
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="input/output error"):
        save_checkpoint(path, {"step": 2})


class Planted:
    def __init__(self, victim):
        self.victim = victim

    def __reduce__(self):
        return os.mkdir, (str(self.victim),)


def test_an_object_in_a_checkpoint_is_refused_and_never_run(tmp_path):
    path = tmp_path / "checkpoint.pt"
    torch.save({"step": Planted(tmp_path / "planted")}, path)
    with pytest.raises(UserError, match="not a readable checkpoint") as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "planted").exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None], ids=["empty", "text", "half"])
def test_a_damaged_file_is_named(path, content):
    path.write_bytes(path.read_bytes()[:200] if content is None else content)
    with pytest.raises(UserError, match="not a readable checkpoint") as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value)


def test_what_torch_makes_of_an_interruption_is_one(path, monkeypatch):
    def interrupted(state, file):
        try:
            raise KeyboardInterrupt
        finally:
            raise RuntimeError("[enforce fail] unexpected pos 3193408 vs 3193296")

    monkeypatch.setattr(checkpoint.torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(path, {"step": 2})
    assert load_checkpoint(path)["step"] == 1
    assert [p.name for p in path.parent.iterdir()] == ["checkpoint.pt"]
