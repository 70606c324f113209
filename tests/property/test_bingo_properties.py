"""Properties of BINGO before and after its warm-up."""

import pytest
import torch
import torch.nn.functional as F
from contrastive_inputs import KNOWN, batch_of, headless, outputs, rows, value

from ssdistill.losses.base.contrast import info_nce
from ssdistill.losses.bingo import BINGO


def run_bingo(epoch: int, **settings: int) -> tuple[float, dict[str, float]]:
    """The loss, and each nce(query, key) at the queue it was scored against."""
    torch.manual_seed(3)
    loss_of = headless(BINGO(KNOWN, queue=32, **settings))
    q, p, mixed, k, neighbor = rows("q", "p", "mixed", "k", "neighbor")
    queue_KD = loss_of.bank["teacher"]
    queries, keys = {"q": q, "p": p, "m": mixed}, {"k": k, "k'": neighbor}
    nce = {
        query + key: float(info_nce(queries[query], keys[key], queue_KD, 0.2))
        for query in queries
        for key in keys
    }
    student = outputs(q, neighbor_0=p, cutmix=mixed)
    teacher = outputs(k, neighbor_1=neighbor)
    return float(loss_of(student, teacher, batch_of(epoch=epoch))), nce


@pytest.mark.parametrize(("warmup_epochs", "epoch"), [(0, 0), (3, 3), (11, 11)])
def test_bingo_gathers_the_bag_after_the_warmup(warmup_epochs, epoch):
    found, nce = run_bingo(epoch, warmup_epochs=warmup_epochs)
    bag = (nce["qk"] + nce["qk'"] + nce["pk"] + nce["pk'"]) / 2
    assert found == pytest.approx((bag + 0.7 * nce["mk"] + 0.3 * nce["mk'"]) / 3, rel=1e-6)


@pytest.mark.parametrize(("warmup_epochs", "epoch"), [(1, 0), (3, 2), (11, 10)])
def test_bingo_keeps_image_and_neighbor_apart_during_the_warmup(warmup_epochs, epoch):
    found, nce = run_bingo(epoch, warmup_epochs=warmup_epochs)
    mixture = 0.7 * nce["mk"] + 0.3 * nce["mk'"]
    assert found == pytest.approx((nce["qk"] + nce["pk'"] + mixture) / 3, rel=1e-6)


def test_bingo_of_two_pairs_is_the_mean_of_both():
    loss_of = headless(BINGO(KNOWN, queue=32))
    q, t = rows("q0", "q1"), rows("t0", "t1")
    p, mixed, neighbor = rows("p", "mixed", "neighbor")

    def of(*views: int) -> float:
        student = outputs(*(q[v] for v in views), neighbor_0=p, cutmix=mixed)
        return value(loss_of, student, outputs(*(t[v] for v in views), neighbor_1=neighbor))

    assert of(0, 1) == pytest.approx((of(0) + of(1)) / 2, rel=1e-6)


def test_keys_of_half_precision_are_stored_as_directions_of_full_precision():
    loss_of = headless(BINGO(KNOWN, queue=32))
    q, p, mixed, k, neighbor = rows("q", "p", "mixed", "k", "neighbor")
    teacher = outputs(k.bfloat16(), neighbor_1=neighbor.bfloat16())
    loss_of(outputs(q, neighbor_0=p, cutmix=mixed), teacher, batch_of(epoch=0))
    stored_KD = loss_of.bank["teacher"]
    for key_D in F.normalize(k.bfloat16().float(), dim=1):
        assert (stored_KD == key_D).all(1).any()
