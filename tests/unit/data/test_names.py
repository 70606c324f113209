import hashlib

import numpy as np
import pytest

from ssdistill.data import names as module
from ssdistill.data.held_out import held_out_by_key, held_out_by_name
from ssdistill.data.names import Names, NameWriter, joined

TEXTS = ["", "a.png", "ä/ö.png", "b/\udcff.png", "x" * 300, "日本.png"]


def test_names_are_read_like_a_list():
    names = Names.of(TEXTS)
    assert len(names) == 6
    assert list(names) == TEXTS
    assert [names[i] for i in range(-6, 6)] == TEXTS + TEXTS
    assert names == TEXTS
    assert names != TEXTS[::-1]
    assert names == Names.of(TEXTS)
    assert repr(names) == "Names(6: '', 'a.png', 'ä/ö.png', …)"
    for row in (6, -7):
        with pytest.raises(IndexError, match="of 6"):
            names[row]


@pytest.mark.parametrize("piece", [1, 2, 100])
def test_some_names_are_taken_in_any_order(monkeypatch, piece):
    monkeypatch.setattr(module, "PIECE", piece)
    names = Names.of(TEXTS)
    rows = np.array([4, 0, 0, 5, 3], dtype=np.uint32)
    assert list(names[rows]) == [TEXTS[row] for row in rows]
    assert list(names[np.array([True, False, True, False, False, True])]) == [
        TEXTS[0], TEXTS[2], TEXTS[5]
    ]  # fmt: skip
    assert list(names[np.zeros(6, dtype=bool)]) == []
    assert list(names) == TEXTS
    assert names.encoded(1, 3) == [b"a.png", "ä/ö.png".encode()]
    assert names.encoded(5, 99) == ["日本.png".encode()]


def test_hashes_sort_as_whole_hashes_do():
    texts = [str(k) for k in range(100)]
    by_whole = sorted(texts, key=lambda text: hashlib.sha256(text.encode()).digest())
    hash_N = Names.of(texts).hashes()
    assert [texts[row] for row in np.argsort(hash_N)] == by_whole


def test_parts_are_joined():
    assert list(joined([Names.of(["a", "bc"]), Names.of([]), Names.of(["d"])])) == ["a", "bc", "d"]
    assert len(NameWriter().names()) == 0


def test_a_name_takes_its_text_and_four_bytes():
    names = Names.of(f"{k:06}.png" for k in range(1000))
    assert names.nbytes == 1000 * 14 + 4


def test_groups_are_whole_and_never_all():
    key_N = np.array([5, 5, 5, 9, 9, 1, 7, 7], dtype=np.uint64)
    assert np.flatnonzero(held_out_by_key(key_N, 0.1)).tolist() == [5]
    assert np.flatnonzero(held_out_by_key(key_N, 0.5)).tolist() == [0, 1, 2, 5]
    assert np.flatnonzero(held_out_by_key(key_N, 0.99)).tolist() == [0, 1, 2, 5, 6, 7]
    assert not held_out_by_key(key_N, 0.0).any()
    assert not held_out_by_key(np.full(4, 3, dtype=np.uint64), 0.5).any()


def test_no_class_is_used_up():
    names = Names.of(str(k) for k in range(7))
    out_N = held_out_by_name(names, np.array([0, 0, 0, 0, 1, 2, 2]), 0.9)
    assert np.bincount(np.array([0, 0, 0, 0, 1, 2, 2])[out_N], minlength=3).tolist() == [3, 0, 1]
    assert held_out_by_name(Names.of([]), None, 0.5).tolist() == []
    assert held_out_by_name(Names.of(["a", "b"]), None, None).sum() == 0
