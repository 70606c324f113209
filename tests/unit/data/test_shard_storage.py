"""Shards that fsspec reads, and what fails on the way."""

import sys

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from tar_files import jpeg, samples, tar_bytes, write_shards

from ssdistill.data import retry
from ssdistill.data.opening import open_originals
from ssdistill.data.settings import StoreSettings
from ssdistill.data.shards.storage import BufferedReader
from ssdistill.data.sources.tar import Tar
from ssdistill.errors import UserError


@pytest.fixture
def memory(monkeypatch):
    """Two shards of 12 images in memory; pauses between attempts take no time."""
    monkeypatch.setattr(retry, "PAUSES", (0.0, 0.0, 0.0))
    files = MemoryFileSystem()
    for n, count in enumerate((7, 5)):
        files.pipe_file(f"/bucket/train-{n}.tar", tar_bytes(samples(7 * n, count)))
    yield files
    files.rm("/bucket", recursive=True)


@pytest.mark.parametrize("name", ["train-{0..1}.tar", "*.tar", "train-[01]*.tar"])
def test_shards_in_memory_are_read_like_those_on_a_disk(memory, tmp_path, name):
    write_shards(tmp_path / "in", {"train-0.tar": 7, "train-1.tar": 5})
    far, near = Tar(path=f"memory://bucket/{name}"), Tar(path=str(tmp_path / "in"))
    for split in ("train", "test"):
        one, other = far.split(split), near.split(split)
        assert len(one) == len(other)
        for i in range(len(one)):
            assert (one.read(i), one.name(i)) == (other.read(i), other.name(i))
        assert np.array_equal(one.labels(), other.labels())
    opened = [open_originals(source, "train", StoreSettings(), 8, tmp_path / f"data{k}")
              for k, source in enumerate((far, near))]  # fmt: skip
    assert opened[0].fingerprint == opened[1].fingerprint


def test_local_files_by_address(tmp_path):
    write_shards(tmp_path, {"a.tar": 5})
    split = Tar(path=f"file://{tmp_path}/*.tar", test_fraction=0).split("train")
    assert [split.read(i) for i in range(5)] == [jpeg(i) for i in range(5)]
    assert not (tmp_path / ".ssdistill").exists()
    assert split.index.num_read == 1
    assert Tar(path=f"file://{tmp_path}/a.tar").split("train").index.num_read == 0


def test_an_image_is_one_request_and_its_name_none(memory, monkeypatch):
    split = Tar(path="memory://bucket/*.tar", test_fraction=0).split("train")
    plain, requests = MemoryFileSystem.cat_file, []

    def counted(self, path, start=None, end=None, **more):
        requests.append((start, end))
        return plain(self, path, start, end, **more)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", counted)
    for i in (3, 9):
        assert split.read(i) == jpeg(i)
        assert split.name(i) == f"{i:04d}.jpg"
    assert len(requests) == 2


@pytest.mark.parametrize("failure", ["error", "short"])
def test_what_fails_in_passing_is_read_again(memory, monkeypatch, tmp_path, failure):
    source = Tar(path="memory://bucket/*.tar", test_fraction=0)
    expected = open_originals(source, "train", StoreSettings(), 8, tmp_path / "a").images[:]
    plain, failures = MemoryFileSystem.cat_file, []

    def failing(self, path, start=None, end=None, **more):
        if (path, start) not in failures:
            failures.append((path, start))
            if failure == "error":
                raise RuntimeError("connection reset")
            return plain(self, path, start, end - 1, **more)
        return plain(self, path, start, end, **more)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", failing)
    again = open_originals(source, "train", StoreSettings(), 8, tmp_path / "b", workers=1)
    assert np.array_equal(again.images[:], expected)
    assert (len(failures), again.bad) == (12, [])
    failures.clear()
    split = source.split("train")
    assert [retry.retried(split.read, i, "it") for i in range(12)] == [jpeg(i) for i in range(12)]
    assert len(failures) == 12


def test_what_fails_every_time_is_a_bad_image(memory, monkeypatch, tmp_path):
    source = Tar(path="memory://bucket/*.tar", test_fraction=0)
    split, plain = source.split("train"), MemoryFileSystem.cat_file
    head = split.index.records_N[3]["block"] * 512 - 512

    def failing(self, path, start=None, end=None, **more):
        if start == head and path.endswith("train-0.tar"):
            raise RuntimeError("connection reset")
        return plain(self, path, start, end, **more)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", failing)
    originals = open_originals(source, "train", StoreSettings(max_bad=0.1), 8, tmp_path)
    assert [reason for _, reason in originals.bad] == ["connection reset, in 4 attempts"]
    with pytest.raises(UserError, match=r"more than 5.0% of 12 images"):
        open_originals(source, "train", StoreSettings(), 8, tmp_path)


def test_a_shard_that_cannot_be_reached_is_named(memory, monkeypatch):
    with pytest.raises(UserError, match=r"memory://bucket/other.tar: no such file or folder"):
        Tar(path="memory://bucket/other.tar").split("train")
    monkeypatch.setattr(MemoryFileSystem, "cat_file", lambda *a, **k: bytes(10**6))
    with pytest.raises(UserError, match="the server only sends whole files; copy the shards"):
        Tar(path="memory://bucket/train-1.tar").split("train").read(0)


def test_without_fsspec_or_its_libraries_the_remedy_is_named(monkeypatch):
    with pytest.raises(UserError, match="nowhere://…: Protocol not known: nowhere"):
        Tar(path="nowhere://bucket/a.tar").split("train")
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(UserError, match=r"requires fsspec: pip install 'ssdistill\[remote\]'"):
        Tar(path="s3://bucket/a.tar").split("train")


def test_names_in_several_kinds_of_places_are_refused():
    with pytest.raises(UserError, match=r"data\.path: shards in several kinds of storage"):
        Tar(path=("memory://bucket/a.tar", "/a.tar")).split("train")


def test_small_parts_in_order_are_read_from_larger_pieces():
    content, reads = bytes(range(256)) * 10, []

    def read(start, length):
        reads.append((start, length))
        return content[start : start + length]

    ahead = BufferedReader(read, 100)
    wanted = [(0, 10), (50, 50), (95, 10), (1000, 300), (1290, 10), (2555, 10), (4, 4)]
    assert [ahead(*part) for part in wanted] == [content[s : s + n] for s, n in wanted]
    assert reads == [(0, 100), (95, 100), (1000, 300), (2555, 100), (4, 100)]
