import numpy as np
import pytest
import torch

from ssdistill.data import loader as loader_module
from ssdistill.data.array_split import ArraySplit
from ssdistill.data.loader import Loader
from ssdistill.data.splits import Source
from ssdistill.data.store import open_store
from ssdistill.errors import UserError


class UnlabeledOrElse(Source):
    """Twenty-three images whose pixels say their row, and labels that must not be read."""

    kind = "or_else"

    def _split(self, name):
        def forbidden():
            raise AssertionError("a label was read")

        images = np.broadcast_to(np.arange(23, dtype=np.uint8)[:, None, None, None], (23, 4, 4, 3))
        return ArraySplit("or else", "1", lambda: images, forbidden, forbidden)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return open_store(UnlabeledOrElse(), "train", 4, tmp_path_factory.mktemp("stores"))


@pytest.fixture(params=["resident", "mapped"])
def memory(request, monkeypatch):
    if request.param == "mapped":
        monkeypatch.setattr(loader_module, "RESIDENT_BYTES", 0)


def rows(batch):
    return batch.index_B.tolist()


def make_neighbors(k=3):
    """(23, k) rows, k different ones for every image and none its own."""
    return (np.arange(23)[:, None] + 1 + 5 * np.arange(k)) % 23


def neighbors_in(batch):
    return batch.neighbors_BHWC[:, 0, 0, 0].tolist()


def test_a_batch_holds_the_pictures_its_index_names(store, memory):
    loader = Loader(store, 5, seed=0, num_steps=9)
    batch = loader.batch(6)
    assert batch.images_BHWC.dtype == torch.uint8
    assert batch.images_BHWC.shape == (5, 4, 4, 3)
    assert batch.index_B.dtype == torch.int64
    assert (batch.images_BHWC == batch.index_B.view(5, 1, 1, 1)).all()
    assert (batch.epoch, batch.step, batch.num_steps) == (1, 6, 9)


def test_an_epoch_shows_every_picture_at_most_once_and_drops_the_rest(store, memory):
    loader = Loader(store, 5, seed=0, num_steps=8)
    assert loader.steps_per_epoch == 4
    for epoch in (0, 1):
        seen = [i for step in range(4) for i in rows(loader.batch(4 * epoch + step))]
        assert len(set(seen)) == len(seen) == 20
        assert set(seen) <= set(range(23))


def test_batches_depend_on_seed_and_step_and_not_on_what_was_asked_before(store, memory):
    first = Loader(store, 5, seed=3, num_steps=12)
    second = Loader(store, 5, seed=3, num_steps=99)
    forwards = [rows(first.batch(step)) for step in range(12)]
    backwards = [rows(second.batch(step)) for step in reversed(range(12))][::-1]
    assert forwards == backwards
    other = Loader(store, 5, seed=4, num_steps=12)
    assert forwards[0] != rows(other.batch(0))


def test_every_epoch_has_its_own_order(store):
    loader = Loader(store, 23, seed=0, num_steps=3)
    orders = [rows(loader.batch(step)) for step in range(3)]
    assert sorted(orders[0]) == list(range(23))
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_iterating_gives_the_same_batches_and_resumes_anywhere(store, memory):
    loader = Loader(store, 5, seed=0, num_steps=11)
    expected = [rows(loader.batch(step)) for step in range(11)]
    whole = list(loader.iterate(0))
    assert [rows(b) for b in whole] == expected
    assert [b.step for b in whole] == list(range(11))
    assert all((b.images_BHWC[:, 0, 0, 0] == b.index_B).all() for b in whole)
    assert [rows(b) for b in loader.iterate(7)] == expected[7:]
    assert list(loader.iterate(11)) == []


def test_iterating_may_stop_early_and_begin_again(store):
    loader = Loader(store, 5, seed=0, num_steps=100)
    for batch in loader.iterate(0):
        if batch.step == 2:
            break
    assert next(loader.iterate(3)).step == 3


def test_changing_a_batch_changes_no_later_one(store, memory):
    loader = Loader(store, 5, seed=0, num_steps=8)
    before = rows(loader.batch(0))
    batch = loader.batch(0)
    batch.images_BHWC.fill_(99)
    batch.index_B.fill_(-1)
    again = loader.batch(0)
    assert rows(again) == before
    assert (again.images_BHWC[:, 0, 0, 0] == again.index_B).all()


def test_processes_share_one_global_batch(store, memory):
    alone = Loader(store, 6, seed=0, num_steps=5)
    ranks = [Loader(store, 6, seed=0, num_steps=5, world_size=3, rank=r) for r in range(3)]
    for step in range(5):
        parts = [rows(loader.batch(step)) for loader in ranks]
        assert [len(part) for part in parts] == [2, 2, 2]
        assert [i for part in parts for i in part] == rows(alone.batch(step))
    assert ranks[0].steps_per_epoch == alone.steps_per_epoch


def test_a_device_that_is_not_the_cpu_gathers_there(store):
    neighbors = make_neighbors()
    loader = Loader(store, 5, seed=0, num_steps=5, device="meta", neighbors=neighbors)
    batch = loader.batch(1)
    assert batch.images_BHWC.device.type == batch.index_B.device.type == "meta"
    assert batch.neighbors_BHWC.device.type == "meta"
    assert batch.images_BHWC.shape == batch.neighbors_BHWC.shape == (5, 4, 4, 3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_on_a_gpu_are_the_same(store, memory):
    key = {"seed": 0, "num_steps": 8, "neighbors": make_neighbors()}
    here, there = (Loader(store, 5, **key, device=d) for d in ("cpu", "cuda"))
    for a, b in zip(here.iterate(0), there.iterate(0), strict=True):
        assert b.images_BHWC.is_cuda and b.index_B.is_cuda
        assert torch.equal(a.images_BHWC, b.images_BHWC.cpu())
        assert torch.equal(a.index_B, b.index_B.cpu())
        assert torch.equal(a.neighbors_BHWC, b.neighbors_BHWC.cpu())


def test_a_batch_larger_than_the_store_is_refused(store):
    with pytest.raises(UserError, match="batch_size=24 exceeds the 23 training images"):
        Loader(store, 24, seed=0, num_steps=1)


def test_a_batch_that_cannot_be_shared_is_refused(store):
    with pytest.raises(
        UserError, match="batch_size=5 is not divisible by the number of processes \(2\)"
    ):
        Loader(store, 5, seed=0, num_steps=1, world_size=2)


def test_loading_reads_no_label(store):
    loader = Loader(store, 23, seed=0, num_steps=2)
    assert [b.step for b in loader.iterate(0)] == [0, 1]
    with pytest.raises(AssertionError, match="a label was read"):
        store.labels  # noqa: B018


def test_without_neighbors_a_batch_has_none(store):
    assert Loader(store, 5, seed=0, num_steps=8).batch(0).neighbors_BHWC is None


def test_every_picture_comes_with_one_of_its_neighbors(store, memory):
    neighbors = make_neighbors()
    batch = Loader(store, 5, seed=0, num_steps=8, neighbors=neighbors).batch(2)
    assert batch.neighbors_BHWC.dtype == torch.uint8
    assert batch.neighbors_BHWC.shape == batch.images_BHWC.shape
    for row, found in zip(rows(batch), neighbors_in(batch), strict=True):
        assert found in neighbors[row]


def test_a_neighbor_depends_on_seed_epoch_and_picture_and_on_nothing_else(store, memory):
    def drawn(batch_size, seed=3, order=range):
        loader = Loader(store, batch_size, seed, num_steps=60, neighbors=make_neighbors())
        batches = [loader.batch(step) for step in order(3 * loader.steps_per_epoch)]
        return {
            (b.epoch, row): found
            for b in batches
            for row, found in zip(rows(b), neighbors_in(b), strict=True)
        }

    whole = drawn(23)
    backwards = drawn(5, order=lambda n: reversed(range(n)))
    assert backwards.items() <= whole.items() and len(backwards) == 60
    assert drawn(23, seed=4) != whole


def test_neighbors_change_from_epoch_to_epoch_and_each_gets_its_turn(store):
    neighbors = make_neighbors()
    loader = Loader(store, 23, seed=0, num_steps=200, neighbors=neighbors)
    counts = np.zeros_like(neighbors)
    for step in range(200):
        batch = loader.batch(step)
        hit = neighbors[rows(batch)] == np.array(neighbors_in(batch))[:, None]
        counts[rows(batch)] += hit
    assert counts.sum() == 23 * 200
    # 200 draws of one in three: 66.7 with a standard deviation of 6.7.
    assert abs(counts - 200 / 3).max() < 5 * 6.7


def test_processes_share_the_neighbors_of_one_global_batch(store, memory):
    neighbors = make_neighbors()
    alone = Loader(store, 6, seed=0, num_steps=5, neighbors=neighbors)
    ranks = [
        Loader(store, 6, seed=0, num_steps=5, world_size=3, rank=r, neighbors=neighbors)
        for r in range(3)
    ]
    for step in range(5):
        parts = [neighbors_in(loader.batch(step)) for loader in ranks]
        assert [i for part in parts for i in part] == neighbors_in(alone.batch(step))


def test_asking_for_neighbors_moves_no_picture(store):
    with_them = Loader(store, 5, seed=0, num_steps=8, neighbors=make_neighbors())
    without = Loader(store, 5, seed=0, num_steps=8)
    assert [rows(b) for b in with_them.iterate(3)] == [rows(b) for b in without.iterate(3)]


@pytest.mark.parametrize(
    "neighbors",
    [
        make_neighbors()[:22],
        make_neighbors()[:, 0],
        make_neighbors()[:, :0],
        make_neighbors().astype(float),
        make_neighbors() + 1,
        make_neighbors() - 1,
    ],
    ids=["too few", "flat", "none each", "floats", "too high", "negative"],
)
def test_neighbors_of_another_store_are_refused(store, neighbors):
    with pytest.raises(ValueError, match="neighbors"):
        Loader(store, 5, seed=0, num_steps=1, neighbors=neighbors)


def test_only_the_rows_asked_for_are_seen_under_their_own_numbers(store, memory):
    wanted = np.array([2, 3, 5, 7, 11, 13])
    loader = Loader(store, 3, seed=0, num_steps=4, rows=wanted)
    assert loader.steps_per_epoch == 2
    batches = list(loader.iterate())
    assert sorted(rows(batches[0]) + rows(batches[1])) == wanted.tolist()
    assert all(torch.equal(b.images_BHWC[:, 0, 0, 0].long(), b.index_B) for b in batches)
    with pytest.raises(UserError, match="exceeds the 6 training images"):
        Loader(store, 7, seed=0, num_steps=1, rows=wanted)


def test_loaders_of_one_store_share_its_pixels(store):
    first, second = (Loader(store, 5, seed=seed, num_steps=9) for seed in range(2))
    assert np.shares_memory(first._images_NHWC, second._images_NHWC)
    assert not np.shares_memory(first._images_NHWC, store.images)
