"""Rows of a mapped store are announced before they are copied, each as a whole."""

import mmap

import numpy as np
import pytest

from ssdistill.data import loader as loader_module
from ssdistill.data.loader import Loader
from ssdistill.data.read_ahead import ReadAhead


@pytest.fixture
def mapped(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (40, 30, 30, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    return np.load(tmp_path / "images.npy", mmap_mode="r")


def test_each_range_holds_its_row_and_begins_with_a_page(mapped):
    rows = np.array([0, 7, 39, 7])
    content = bytes(mapped._mmap)
    for row, (start, length) in zip(rows, ReadAhead(mapped).ranges(rows), strict=True):
        assert start % mmap.PAGESIZE == 0
        assert content[start : start + length].endswith(mapped[row].tobytes())
        assert length < mapped[row].nbytes + mmap.PAGESIZE


def test_rows_can_be_announced_up_to_the_last_one(mapped):
    ReadAhead(mapped)(np.arange(len(mapped)))


def test_what_is_not_a_whole_map_needs_no_announcing(mapped):
    assert ReadAhead(mapped)._file is mapped._mmap
    for array in (np.array(mapped), np.asarray(mapped), mapped[:0], mapped[3:]):
        announce = ReadAhead(array)
        announce(np.arange(len(array)))
        assert announce._file is None


def test_a_large_store_is_announced_batch_by_batch_and_gives_the_same_images(
    make_store, monkeypatch, mapped
):
    announced = []
    monkeypatch.setattr(ReadAhead, "__call__", lambda self, rows: announced.append(rows.tolist()))
    store = make_store(len(mapped))
    store.images = mapped
    inside = Loader(store, 8, 0, 4).batch(1)
    monkeypatch.setattr(loader_module, "RESIDENT_BYTES", 0)
    announced.clear()
    outside = Loader(store, 8, 0, 4).batch(1)
    assert announced == [outside.index_B.tolist()]
    assert np.array_equal(inside.images_BHWC, outside.images_BHWC)
    assert np.array_equal(outside.images_BHWC, np.asarray(mapped)[outside.index_B])
