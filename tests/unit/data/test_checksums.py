"""A store that has changed since it was written is detected; an older one gets checksums."""

import json

import numpy as np
import pytest

from ssdistill.data import checksums
from ssdistill.data import store as store_module
from ssdistill.data.sources.npz import Npz
from ssdistill.data.store import open_store
from ssdistill.errors import UserError


@pytest.fixture
def source(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (50, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", train_images=images, test_images=images[:2])
    return Npz(path=str(tmp_path / "a.npz"))


def flip(path, byte, bit=0):
    content = bytearray(path.read_bytes())
    content[byte] ^= 1 << bit
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["images.npy", "store.json", "checksums.json"])
def test_one_flipped_bit_anywhere_is_found_and_the_store_named(source, tmp_path, name):
    folder = open_store(source, "train", 8, tmp_path).folder
    content = (folder / name).read_bytes()
    rng = np.random.default_rng(1)
    for byte in (0, len(content) - 1, *rng.integers(0, len(content), 12)):
        flip(folder / name, int(byte), bit=int(rng.integers(8)))
        with pytest.raises(UserError, match=r"corrupt image store .*; delete the folder") as caught:
            open_store(source, "train", 8, tmp_path)
        assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
        (folder / name).write_bytes(content)
    assert len(open_store(source, "train", 8, tmp_path)) == 50


def test_the_block_is_told(source, tmp_path, monkeypatch):
    for module in (checksums, store_module):
        monkeypatch.setattr(module, "BLOCK_BYTES", 1000)
    folder = open_store(source, "train", 8, tmp_path).folder
    flip(folder / "images.npy", 4321)
    with pytest.raises(
        UserError, match=r"images\.npy does not match its checksum from byte 4000 on"
    ):
        open_store(source, "train", 8, tmp_path)


def test_blocks_cover_the_whole_file(tmp_path, monkeypatch):
    monkeypatch.setattr(checksums, "BLOCK_BYTES", 10)
    path = tmp_path / "a"
    path.write_bytes(bytes(range(25)))
    before = checksums.block_checksums(path)
    assert len(before) == 3
    for byte in range(25):
        flip(path, byte)
        differs = [a != b for a, b in zip(before, checksums.block_checksums(path), strict=True)]
        assert differs.index(True) == byte // 10 and sum(differs) == 1
        flip(path, byte)


def old(folder):
    """The store as version 0.1 left it."""
    (folder / "checksums.json").unlink()
    meta = json.loads((folder / "store.json").read_text())
    del meta["window"], meta["notices"]
    (folder / "store.json").write_text(json.dumps(meta))


def test_an_older_store_opens_and_gets_its_checksums(source, tmp_path):
    first = open_store(source, "train", 8, tmp_path)
    old(first.folder)
    again = open_store(source, "train", 8, tmp_path)
    assert again.folder == first.folder and again.fingerprint == first.fingerprint
    assert (first.folder / "checksums.json").exists()
    flip(first.folder / "images.npy", 5000)
    with pytest.raises(UserError, match="corrupt image store"):
        open_store(source, "train", 8, tmp_path)


def test_an_older_store_is_held_against_its_fingerprint(source, tmp_path):
    folder = open_store(source, "train", 8, tmp_path).folder
    old(folder)
    flip(folder / "images.npy", 5000)
    with pytest.raises(UserError, match="the pixels do not match the fingerprint"):
        open_store(source, "train", 8, tmp_path)
    assert not (folder / "checksums.json").exists()


def test_fingerprint_and_name_of_an_8_bit_store_are_those_of_version_0_1(tmp_path, monkeypatch):
    """Finished stages are found again by the fingerprint, and stores by their name."""
    images = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    monkeypatch.chdir(tmp_path)
    np.savez("a.npz", train_images=images, test_images=images)
    store = open_store(Npz(path="a.npz"), "train", 4, tmp_path)
    assert store.folder.name == "npz-train-4-50618938ebc8"
    assert store.fingerprint == ("69a4bc5b4b487da3b34f4acee978c181f2e2fe9e493a3694c52225dd3ad0c478")
