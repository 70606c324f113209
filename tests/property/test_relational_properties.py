"""What the relational losses may depend on."""

import numpy as np
import pytest
import torch
from relational_inputs import (
    COUNT,
    batch_of,
    build,
    distance_and_angle,
    map_pair,
    sides,
    token_pair,
    value,
    vector_pair,
)
from torch import Tensor

from ssdistill.errors import UserError
from ssdistill.losses import Shapes
from ssdistill.losses.cc import neighboring_differences
from ssdistill.losses.dist import relation_distances
from ssdistill.losses.ega import graph_alignment
from ssdistill.losses.gram import gram_difference
from ssdistill.losses.ickd import channel_difference
from ssdistill.losses.kdsvd import stage_differences
from ssdistill.losses.pkt import affinity_divergence
from ssdistill.losses.sp import similarity_difference
from ssdistill.models.representation import Outputs
from ssdistill.settings.registry import LOSSES
from ssdistill.testing.synthetic import make_shapes, mapped

KINDS = ("rkd", "sp", "pkt", "cc", "ega", "gram", "ickd", "dist", "kdsvd")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "cc"])
def test_the_order_of_the_batch_does_not_matter(kind):
    loss_of = build(kind)
    student, teacher = sides(loss_of)
    order_B = torch.randperm(COUNT)
    shuffled = (mapped(side, lambda x: x[order_B]) for side in (student, teacher))
    assert value(loss_of, *shuffled) == pytest.approx(value(loss_of, student, teacher), rel=1e-5)
    unequal = value(loss_of, mapped(student, lambda x: x[order_B]), teacher)
    assert unequal != pytest.approx(value(loss_of, student, teacher), rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_views_are_compared_one_by_one_and_averaged(kind):
    loss_of = build(kind)
    student, teacher = sides(loss_of)
    other = mapped(student, torch.sin)
    expected = (value(loss_of, student, teacher) + value(loss_of, other, teacher)) / 2
    both = Outputs([*student, *other]), Outputs([*teacher, *teacher])
    assert value(loss_of, *both) == pytest.approx(expected, rel=1e-5)


def test_cc_depends_on_who_is_next_to_whom():
    loss_of = build("cc")
    student, teacher = sides(loss_of)
    expected = value(loss_of, student, teacher)
    backwards = (mapped(side, lambda x: x.flip(0)) for side in (student, teacher))
    assert value(loss_of, *backwards) == pytest.approx(expected, rel=1e-5)
    order_B = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])
    shuffled = (mapped(side, lambda x: x[order_B]) for side in (student, teacher))
    assert value(loss_of, *shuffled) != pytest.approx(expected, rel=1e-3)


def factor(x: Tensor, *axes: int) -> Tensor:
    """Random factors around 1, different along ``axes`` alone."""
    generator = torch.Generator().manual_seed(5)
    shape = [size if axis in axes else 1 for axis, size in enumerate(x.shape)]
    return torch.rand(shape, generator=generator) + 0.5


UNSEEN = {
    "rkd": lambda x: 3 * x + factor(x, 1),
    "sp": lambda x: 3 * x,
    "pkt": lambda x: factor(x, 0) * x,
    "ega": lambda x: factor(x, 0) * x + factor(x, 0),
    "gram": lambda x: x * factor(x, 0, 2, 3) if x.ndim == 4 else x,
    "ickd": lambda x: factor(x, 0) * x,
    "dist": lambda x: x + factor(x, 0),
    "kdsvd": lambda x: factor(x, 0) * x,
}
"""Changes that a loss does not see: of scale, of origin, of every image or position."""


@pytest.mark.parametrize("kind", UNSEEN)
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_what_a_relation_does_not_see(kind, side):
    loss_of = build(kind)
    both = dict(zip(("student", "teacher"), sides(loss_of), strict=True))
    expected = value(loss_of, **both)
    both[side] = mapped(both[side], UNSEEN[kind])
    assert value(loss_of, **both) == pytest.approx(expected, rel=2e-4)


REPEATED = {"sp": 1 / 2, "pkt": 1 / 2, "ickd": 1 / 2, "dist": 1, "gram": 1, "kdsvd": 1}
"""What the loss is multiplied by when every image occurs twice."""


@pytest.mark.parametrize("kind", REPEATED)
def test_how_a_loss_grows_with_the_batch(kind):
    loss_of = build(kind)
    student, teacher = sides(loss_of)
    twice = (mapped(side, lambda x: torch.cat([x, x])) for side in (student, teacher))
    expected = REPEATED[kind] * value(loss_of, student, teacher)
    assert value(loss_of, *twice) == pytest.approx(expected, rel=1e-4)


def test_ega_is_neither_squared_nor_averaged():
    loss_of = build("ega", node_weight=0.0)
    student, teacher = sides(loss_of)
    twice = (mapped(side, lambda x: torch.cat([x, x])) for side in (student, teacher))
    expected = 2 * value(loss_of, student, teacher)
    assert value(loss_of, *twice) == pytest.approx(expected, rel=1e-4)


PURE = {
    "rkd": (vector_pair, lambda s, t: distance_and_angle(s, t, 3)),
    "sp": (vector_pair, similarity_difference),
    "pkt": (vector_pair, affinity_divergence),
    "cc": (vector_pair, neighboring_differences),
    "ega": (vector_pair, lambda s, t: torch.stack(graph_alignment(s, t))),
    "gram": (token_pair, lambda s, t: gram_difference(s, t, True)),
    "ickd": (map_pair, channel_difference),
    "dist": (vector_pair, lambda s, t: torch.stack(relation_distances(s, t, 2.0))),
    "kdsvd": (map_pair, lambda s, t: stage_differences([(s, t), (t.flip(0), s)], 2, True)[0]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_float32_is_as_good_as_float64(kind):
    pair, function = PURE[kind]
    exact = function(*pair())
    assert exact.dtype == torch.float64
    assert torch.allclose(function(*(x.float() for x in pair())).double(), exact, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", ["zero", "one image repeated", "like the teacher"])
def test_degenerate_outputs_give_finite_gradients(kind, case):
    loss_of = build(kind)
    student, teacher = sides(loss_of)
    change = {
        "zero": lambda side: mapped(side, torch.zeros_like),
        "one image repeated": lambda side: mapped(side, lambda x: x[:1].expand_as(x).clone()),
        "like the teacher": lambda _: mapped(teacher, torch.clone),
    }[case]
    student = mapped(change(student), Tensor.requires_grad_)
    loss = loss_of(student, teacher, batch_of())
    loss.backward()
    assert torch.isfinite(loss)
    leaves = [student[0].embedding_BD, *student[0].maps.values()]
    gradients = [x.grad for x in leaves if x.grad is not None]
    assert gradients and all(torch.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_image_is_no_error(kind):
    loss_of = build(kind)
    student, teacher = (mapped(side, lambda x: x[:1]) for side in sides(loss_of))
    assert np.isfinite(value(loss_of, student, teacher))


def test_a_relation_reads_the_projection_only_where_there_is_one():
    loss_of = LOSSES.build(LOSSES.schema("rkd")(read="projection"), make_shapes())
    student, teacher = sides(loss_of)
    other = mapped(teacher, torch.clone)
    other[0].embedding_BD = torch.randn_like(other[0].embedding_BD)
    assert value(loss_of, student, other) == value(loss_of, student, teacher)
    assert loss_of.reads_projection
    with pytest.raises(UserError, match="rkd: read=projection: the teacher has no projection"):
        LOSSES["rkd"](Shapes(4, 4, 10), read="projection")
