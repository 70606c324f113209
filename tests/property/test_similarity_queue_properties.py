"""Properties of SEED, CompRess and the queues they compare with."""

import copy

import pytest
import torch
import torch.nn.functional as F
from similarity_inputs import COUNT, KNOWN, QUEUE, WIDTH, bare, batch_of, near, outputs, rows
from torch import Tensor

from ssdistill.errors import UserError
from ssdistill.losses.base.bank import Bank
from ssdistill.losses.base.similarity import queue_divergence, unit
from ssdistill.losses.compress import CompRess
from ssdistill.losses.isd import ISD
from ssdistill.losses.lightly import Lightly
from ssdistill.losses.ressl import ReSSL
from ssdistill.losses.seed import SEED
from ssdistill.models.representation import Outputs, Representation

OF_QUEUE = {
    "seed": SEED,
    "compress-1q": lambda known: CompRess(known, variant="1q"),
    "compress-2q": lambda known: CompRess(known, variant="2q"),
    "isd": ISD,
    "ressl": ReSSL,
    "lightly": Lightly,
}


def holding(bank: Bank, queue_KD: Tensor) -> Bank:
    """A bank like this one with other keys of the teacher's side."""
    bank = copy.deepcopy(bank)
    bank.teacher.copy_(queue_KD)
    return bank


def test_seed_with_the_published_temperature_is_infonce():
    loss = bare(SEED(KNOWN, queue=QUEUE, temperature_teacher=1e-4))
    s_BD, t_BD = rows(1, COUNT, WIDTH), rows(2, COUNT, WIDTH)
    own_B1 = (unit(s_BD) * unit(t_BD)).sum(1, keepdim=True)
    logits_BK = torch.cat([own_B1, unit(s_BD) @ loss.bank["teacher"].T], 1) / 0.2
    expected = F.cross_entropy(logits_BK, torch.zeros(COUNT, dtype=torch.int64))
    assert float(loss(outputs(s_BD), outputs(t_BD), batch_of())) == near(expected)


@pytest.mark.parametrize("name", ["seed", "compress-1q", "isd", "ressl", "lightly"])
def test_keys_join_the_queue_after_scoring_and_with_lightly_before(name):
    loss = bare(OF_QUEUE[name](KNOWN))
    s_BD, t_BD = rows(1, COUNT, WIDTH), rows(2, COUNT, WIDTH)
    before_KD = loss.bank["teacher"]
    value = loss(outputs(s_BD), outputs(t_BD), batch_of())
    after_KD = loss.bank["teacher"]
    assert torch.equal(after_KD[:COUNT], unit(t_BD))
    assert torch.equal(after_KD[COUNT:], before_KD[COUNT:])
    seen, unseen = (after_KD, before_KD) if name == "lightly" else (before_KD, after_KD)
    expected, other = (
        loss.compare(s_BD, [t_BD], queue_KD, holding(loss.bank, queue_KD))
        for queue_KD in (seen, unseen)
    )
    assert float(value) == near(expected, 1e-6)
    assert float(value) != near(other, 1e-3)


@pytest.mark.parametrize("name", OF_QUEUE)
def test_a_teacher_s_view_in_several_pairs_joins_the_queue_once(name):
    loss = OF_QUEUE[name](KNOWN)
    first, second = (Representation(rows(seed, COUNT, WIDTH)) for seed in (1, 2))
    student = outputs(*(rows(seed, COUNT, WIDTH) for seed in (3, 4, 5, 6)))
    loss(student, Outputs([first, second, first, second]), batch_of())
    assert loss.bank.pushed == 2 * COUNT
    expected = torch.cat([unit(view.embedding_BD) for view in (first, second)])
    assert torch.equal(loss.bank.teacher[: 2 * COUNT], expected)


def test_small_patches_of_seed_have_a_queue_of_their_own():
    loss = bare(SEED(KNOWN, queue=3 * COUNT, small_views=2))
    ours, theirs = ([rows(10 * side + v, COUNT, WIDTH) for v in range(4)] for side in (1, 2))
    banks = loss.bank["teacher"], loss.small_bank["teacher"]
    value = loss(outputs(*ours), outputs(*theirs), batch_of())
    parts = [
        queue_divergence(torch.cat(s), torch.cat(t), q, q, 0.2, 0.01, own=True, kl=False)
        for s, t, q in zip((ours[:2], ours[2:]), (theirs[:2], theirs[2:]), banks, strict=True)
    ]
    assert float(value) == near(sum(parts), 1e-6)
    assert loss.bank.pushed == 2 * COUNT and loss.small_bank.pushed == COUNT
    assert torch.equal(loss.bank.teacher[: 2 * COUNT], unit(torch.cat(theirs[:2])))
    assert torch.equal(loss.small_bank.teacher[:COUNT], unit(theirs[2]))
    with pytest.raises(UserError, match="small_views=2 leaves no full-size view among 2 pairs"):
        loss(outputs(*ours[:2]), outputs(*theirs[:2]), batch_of())


def test_a_student_like_the_teacher_gives_compress_equal_queues_and_no_loss():
    loss = CompRess(KNOWN, variant="2q", queue=3 * COUNT - 4)
    for step in range(3):
        x_BD = rows(step, COUNT, WIDTH)
        loss(outputs(2 * x_BD), outputs(x_BD), batch_of(step))
    assert torch.allclose(loss.bank.student, loss.bank.teacher, atol=1e-6)
    x_BD = rows(9, COUNT, WIDTH)
    same, other = (
        copy.deepcopy(loss)(outputs(s_BD), outputs(x_BD), batch_of())
        for s_BD in (x_BD, rows(8, COUNT, WIDTH))
    )
    assert float(same) == pytest.approx(0, abs=1e-5)
    assert float(other) > 1


def test_the_student_s_queue_of_compress_holds_what_the_variant_says():
    s_BD, k_BD = rows(1, COUNT, WIDTH), rows(2, COUNT, WIDTH)
    for variant, expected in {"2q": s_BD, "2q_momentum": k_BD}.items():
        loss = CompRess(KNOWN, variant=variant, momentum=0.5)
        assert loss.momentum == (None if variant == "2q" else 0.5)
        loss(outputs(s_BD, momentum=(k_BD,)), outputs(rows(3, COUNT, WIDTH)), batch_of())
        assert torch.equal(loss.bank.student[:COUNT], unit(expected))
    assert CompRess(KNOWN, variant="1q").momentum is None
