"""How AB and OFD treat pre-ReLU maps: signs, margins, ignored values."""

import pytest
import torch
from intermediate_inputs import COUNT, batch, build, make_inputs, maps, near
from scipy.stats import truncnorm
from torch import Tensor

from ssdistill.errors import UserError
from ssdistill.losses import Shapes
from ssdistill.losses.ab import SCALE, boundary_error
from ssdistill.losses.ofd import margins, partial_distance
from ssdistill.testing.synthetic import make_shapes


def factors(count: int, seed: int = 9) -> Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(seed)) + 0.5


def test_ab_asks_for_the_side_and_the_margin_only():
    t = maps(1)
    right = 1.5 * torch.where(t > 0, 1.0, -1.0) * (1 + maps(2).abs())
    assert float(boundary_error(right, t, 1.5)) == 0
    assert near(boundary_error(maps(0), 100 * t, 1.0), boundary_error(maps(0), t, 1.0))
    wrong = torch.where(t > 0, -0.5, 0.5)
    cells = t[0].numel()
    assert float(boundary_error(wrong, t, 1.0)) == pytest.approx(1.5**2 * cells, rel=1e-6)


def test_ab_counts_an_inactive_neuron_as_below():
    s = torch.full((COUNT, 6, 4, 4), -1.0)
    assert float(boundary_error(s, torch.zeros_like(s), 1.0)) == 0
    assert float(boundary_error(-s, torch.zeros_like(s), 1.0)) > 0


@pytest.mark.parametrize("kind, scale", [("ab", SCALE), ("ofd", 1.0)])
def test_the_deepest_stage_counts_most(kind, scale):
    loss_of = build(kind)
    assert loss_of.weights == [scale / 8, scale / 4, scale / 2, scale]
    student, teacher = make_inputs(loss_of)
    found = loss_of.pairs_of(student[0], teacher[0])
    parts = torch.stack([loss_of.pair_loss(k, *pair) for k, pair in enumerate(found)])
    assert near(loss_of(student, teacher, batch()), parts.sum())


def test_ofds_margin_is_the_mean_of_the_negative_part():
    mean_C, std_C = torch.tensor([0.0, 0.7, -1.3, 2.0]), torch.tensor([1.0, 0.4, 2.0, 0.8])
    expected = [
        truncnorm.mean(-float("inf"), -m / s, loc=m, scale=s)
        for m, s in zip(mean_C.tolist(), std_C.tolist(), strict=True)
    ]
    assert torch.allclose(margins(mean_C, std_C), torch.tensor(expected, dtype=torch.float32))


def test_ofds_margin_is_three_deviations_where_negatives_are_rare():
    # Phi(-3.0902) = 0.001
    ratio_C = torch.tensor([3.08, 3.10, 50.0])
    rare = margins(2 * ratio_C, torch.full((3,), 2.0))
    assert rare[1:].tolist() == [-6.0, -6.0]
    assert -2 < float(rare[0]) < 0
    dead = margins(torch.tensor([-1.0, 0.0, 1.0]), torch.zeros(3))
    assert torch.allclose(dead, torch.tensor([-1.0, 0.0, 0.0]), atol=1e-6)


def test_ofd_leaves_alone_what_the_relu_removes():
    t, margin_C = maps(1), -factors(6)
    floor = torch.maximum(t, margin_C[:, None, None])
    assert float(partial_distance(floor, t, margin_C)) == 0
    lower = torch.where(t > 0, floor, floor - 5 * factors(1))
    assert float(partial_distance(lower, t, margin_C)) == 0
    higher = floor + 0.1
    cells = t[0].numel()
    assert float(partial_distance(higher, t, margin_C)) == pytest.approx(0.01 * cells, rel=1e-4)


def test_ofd_takes_its_margins_from_the_teacher_and_keeps_them():
    known = make_shapes()
    norms = {name: (torch.full((8,), 0.5), torch.full((8,), 2.0)) for name in known.teacher_norms}
    loss_of = build("ofd", Shapes(**{**vars(known), "teacher_norms": norms}))
    expected_C = margins(*norms["layer1"])
    assert torch.equal(loss_of.stages[0].margin_C, expected_C)
    assert torch.equal(loss_of.state_dict()["stages.0.margin_C"], expected_C)


def test_ofd_names_the_stage_without_a_batch_norm():
    known = Shapes(**{**vars(make_shapes()), "teacher_norms": {}})
    with pytest.raises(UserError, match=r"^ofd: the teacher .* no batch norm .* 'layer1'"):
        build("ofd", known)
