"""Properties of the contrastive losses for arbitrary inputs."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from contrastive_inputs import COUNT, KNOWN, WIDTH, batch_of, headless, inputs, outputs, rows, value
from torch import Tensor

from ssdistill.errors import UserError
from ssdistill.losses.base.contrast import info_nce
from ssdistill.losses.bingo import BINGO
from ssdistill.losses.cassle import CaSSLe, contrastive, decorrelative
from ssdistill.losses.disco import DisCo, squared_distances
from ssdistill.losses.infonce import InfoNCE
from ssdistill.losses.pcd import PCD
from ssdistill.models.representation import Outputs, Representation
from ssdistill.testing.synthetic import make_shapes, mapped

WITH_COSINES = {
    "infonce": InfoNCE,
    "disco": DisCo,
    "bingo": BINGO,
    "cassle": CaSSLe,
    "cassle-barlow": lambda known: CaSSLe(known, variant="barlow"),
    "pcd": lambda known: PCD(known, hidden_dim=8),
}


@pytest.mark.parametrize("kind", WITH_COSINES)
def test_the_order_of_the_batch_does_not_matter(kind):
    loss = WITH_COSINES[kind](make_shapes())
    student, teacher = inputs(loss)
    order = torch.randperm(COUNT)
    permuted = (mapped(side, lambda x: x[order]) for side in (student, teacher))
    assert value(loss, *permuted) == pytest.approx(value(loss, student, teacher), rel=1e-5)
    assert value(loss, student, mapped(teacher, lambda x: x[order])) != pytest.approx(
        value(loss, student, teacher), rel=1e-3
    )


@pytest.mark.parametrize("scales", [(3, 1), (1, 3)], ids=["student", "teacher"])
@pytest.mark.parametrize("kind", WITH_COSINES)
def test_the_length_of_vectors_does_not_matter(kind, scales):
    loss = headless(WITH_COSINES[kind](make_shapes(WIDTH, WIDTH)))
    sides = inputs(loss)
    scaled = (
        mapped(x, partial(torch.mul, other=scale)) for x, scale in zip(sides, scales, strict=True)
    )
    assert value(loss, *scaled) == pytest.approx(value(loss, *sides), rel=1e-4)


@pytest.mark.parametrize("kind", WITH_COSINES)
def test_vectors_of_zeros_give_no_nan(kind):
    loss = WITH_COSINES[kind](make_shapes())
    student, teacher = inputs(loss)
    loss(student, mapped(teacher, torch.zeros_like), batch_of()).backward()
    for parameter in loss.parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all()


@pytest.mark.parametrize(
    "function",
    [
        lambda s, t, q: info_nce(s, t, q, 0.2),
        lambda s, t, q: squared_distances(s, t, "mean"),
        lambda s, t, q: contrastive([s, t], [t, q], [(0, 0), (1, 1)], 0.2),
        lambda s, t, q: decorrelative([s], [t], [(0, 0)], 0.005),
    ],
    ids=["info_nce", "squared_distances", "contrastive", "decorrelative"],
)
def test_float64_vectors_give_the_float32_loss(function: Callable[..., Tensor]):
    s, t, queue = rows("s", "t", "queue")
    queue = F.normalize(queue, dim=1)
    double = function(s.double(), t.double(), queue)
    assert double.dtype == torch.float32
    assert torch.equal(double, function(s, t, queue))


@pytest.mark.parametrize("cls", [InfoNCE, BINGO], ids=["infonce", "bingo"])
def test_a_teacher_s_view_that_is_paired_twice_joins_the_queue_once(cls):
    loss_of = headless(cls(KNOWN, queue=32))
    before = loss_of.bank["teacher"]
    t0, t1, neighbor, cutmix, key = rows("t0", "t1", "neighbor", "cutmix", "key")
    shared = Representation(t0)
    teacher = Outputs([shared, Representation(t1), shared], {"neighbor_1": Representation(key)})
    student = outputs(*rows("s0", "s1", "s2"), neighbor_0=neighbor, cutmix=cutmix)
    loss_of(student, teacher, batch_of())
    pushed = F.normalize(torch.cat([t0, t1]), dim=1)
    assert torch.equal(loss_of.bank.teacher, torch.cat([pushed, before[2 * COUNT :]]))


@pytest.mark.parametrize("cls", [InfoNCE, DisCo, BINGO, CaSSLe])
def test_a_teacher_without_a_projection_is_refused_where_it_is_read(cls):
    with pytest.raises(UserError, match=f"^{cls.kind}: .*projection"):
        cls(KNOWN, read="projection")


@pytest.mark.parametrize("cls", [InfoNCE, DisCo, BINGO, CaSSLe])
def test_the_projection_is_read_where_it_is_asked_for(cls):
    known = make_shapes()
    loss_of = cls(known, read="projection")
    student, teacher = inputs(loss_of)
    expected = value(loss_of, student, teacher)

    def changed(which: str) -> Outputs:
        def other(r: Representation) -> Representation:
            return replace(r, **{which: torch.randn_like(getattr(r, which))})

        return Outputs([other(r) for r in teacher], {n: other(r) for n, r in teacher.extra.items()})

    assert loss_of.reads_projection
    assert value(loss_of, student, changed("embedding_BD")) == expected
    assert value(loss_of, student, changed("projection_BP")) != expected
