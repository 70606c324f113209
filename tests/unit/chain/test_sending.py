import pickle

import numpy as np
import pytest
import torch

from ssdistill.chain.process_group import Processes
from ssdistill.chain.sending import UNSENDABLE, pack, unpack
from ssdistill.distributed import ALONE, each, is_shared
from ssdistill.errors import UserError

CPU = torch.device("cpu")


class Labeled:
    """Images as every process has opened them: they are never sent, and their labels neither."""

    @property
    def labels(self):
        raise AssertionError("labels were read")

    def __reduce__(self):
        raise AssertionError("images were sent")


def arrived(content, root, present=None, there=None):
    return unpack(pack(content, present or {}, root), there or {}, root, CPU)


def test_what_every_process_has_is_named(tmp_path):
    ours, theirs = Labeled(), Labeled()
    (images,), weights = arrived(([ours], torch.arange(3.0)), tmp_path, {"a": ours}, {"a": theirs})
    assert images is theirs and torch.equal(weights, torch.arange(3.0))


SLICES = {
    "all": slice(None),
    "every third": slice(1, None, 3),
    "backwards": slice(None, None, -2),
    "central": (slice(2, 40), slice(3, 9), slice(1, -1)),
}


@pytest.mark.parametrize("rows", SLICES.values(), ids=SLICES)
def test_arrays_mapped_from_the_runs_folder_are_mapped_again(tmp_path, rows):
    whole = np.random.default_rng(0).integers(0, 256, (50, 20, 30, 3)).astype(np.uint8)
    (tmp_path / "here" / "data").mkdir(parents=True)
    np.save(tmp_path / "here" / "data" / "images.npy", whole)
    mapped = np.load(tmp_path / "here" / "data" / "images.npy", mmap_mode="r")
    packed = pack(mapped[rows], {}, tmp_path / "here")
    assert len(packed) < 1000
    # The other process may see the folder under another name.
    (tmp_path / "there").symlink_to(tmp_path / "here")
    there = unpack(packed, {}, tmp_path / "there", CPU)
    assert np.array_equal(there, whole[rows]) and not there.flags.writeable
    # Not every process can be expected to see what is elsewhere.
    packed = pack(mapped[rows], {}, tmp_path / "here" / "other")
    assert len(packed) > whole[rows].nbytes
    assert np.array_equal(unpack(packed, {}, tmp_path, CPU), whole[rows])


def test_what_has_been_computed_of_a_map_is_sent(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(5.0))
    doubled = 2 * np.load(tmp_path / "x.npy", mmap_mode="r")
    assert np.array_equal(arrived(doubled, tmp_path), 2 * np.arange(5.0))


def test_functions_inside_others_cannot_be_sent(tmp_path):
    with pytest.raises(UNSENDABLE):
        pack(lambda: None, {}, tmp_path)
    assert pickle.PicklingError in UNSENDABLE


def squares(numbers, note="of another process"):
    return [found for _, found in each(numbers, lambda n: n * n, UserError)], note, is_shared()


@pytest.mark.parametrize("team", [ALONE, Processes()], ids=["alone", "processes of one"])
def test_one_process_does_all_of_the_work(team):
    assert team.size == 1
    assert team.do(squares, [1, 2, 3], note="own") == ([1, 4, 9], "own", False)


def test_an_error_in_a_part_is_that_of_the_work():
    def make(number):
        if number == 2:
            raise UserError("two")
        return number

    found = []
    with pytest.raises(UserError, match="two"):
        for part, _ in each([1, 2, 3], make, UserError):
            found.append(part)
    assert found == [1]
