"""Properties of KD-SVD, its singular vectors and their gradients."""

from pathlib import Path

import numpy as np
import pytest
import torch
from relational_inputs import build, sides, token_pair, value
from torch import Tensor

from ssdistill.errors import UserError
from ssdistill.losses.kdsvd import RightVectors, singular_vectors, stage_differences
from ssdistill.settings.registry import LOSSES
from ssdistill.testing.synthetic import make_shapes, mapped


def right_vectors(x_BNC: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Each vector times itself: what does not depend on the sign."""
    vector_BCk, _ = RightVectors.apply(x_BNC, count)
    vt_BkC = torch.linalg.svd(x_BNC, full_matrices=False).Vh[:, :count]
    return vector_BCk.square(), vt_BkC.mT.square()


@pytest.mark.parametrize("shape", [(9, 5), (5, 9), (6, 6)])
@pytest.mark.parametrize("count", [1, 4])
def test_the_gradient_of_singular_vectors_is_that_of_the_svd(shape, count):
    torch.manual_seed(4)
    x_BNC = torch.randn(3, *shape, dtype=torch.float64, requires_grad=True)
    ours, theirs = right_vectors(x_BNC, count)
    towards = torch.randn_like(ours)
    (gradient,) = torch.autograd.grad((ours * towards).sum(), x_BNC, retain_graph=True)
    (expected,) = torch.autograd.grad((theirs * towards).sum(), x_BNC)
    assert torch.allclose(ours, theirs)
    assert torch.allclose(gradient, expected, atol=1e-3 * float(expected.abs().max()))


def vector_gradients(x_NC: Tensor) -> tuple[Tensor, Tensor]:
    """Of two singular vectors, squared: ours, and that of torch's SVD."""
    x_BNC = x_NC[None].clone().requires_grad_()
    ours, theirs = right_vectors(x_BNC, 2)
    torch.manual_seed(0)
    towards = torch.rand_like(ours)
    (gradient,) = torch.autograd.grad((ours * towards).sum(), x_BNC, retain_graph=True)
    return gradient, torch.autograd.grad((theirs * towards).sum(), x_BNC)[0]


@pytest.mark.parametrize("x_NC", [torch.eye(6), torch.zeros(6, 6), torch.ones(6, 6)])
def test_coinciding_singular_values_give_a_finite_gradient(x_NC):
    assert torch.isfinite(vector_gradients(x_NC)[0]).all()


def test_the_svd_itself_gives_none_where_all_singular_values_are_one():
    assert not torch.isfinite(vector_gradients(torch.eye(6))[1]).all()


def test_kdsvd_has_the_published_gradient_within_that_of_a_float32_svd():
    """The published code, run again, differs from its own numbers by up to 2e-5."""
    numbers = np.load(Path(__file__).parents[1] / "golden" / "losses.npz")
    ours = [torch.from_numpy(numbers[f"kdsvd/in/s.{i}"]).requires_grad_() for i in range(3)]
    theirs = [torch.from_numpy(numbers[f"kdsvd/in/t.{i}"]) for i in range(3)]
    sum(stage_differences(list(zip(ours, theirs, strict=True)), 1, False)).backward()
    for i, s_BCHW in enumerate(ours):
        expected = torch.from_numpy(numbers[f"kdsvd/out/grad_s.{i}"])
        assert (s_BCHW.grad - expected).abs().max() <= 5e-5 * expected.abs().max()


def test_kdsvd_does_not_mind_which_way_the_student_points():
    loss_of = build("kdsvd", k=2)
    student, teacher = sides(loss_of)
    opposite = value(loss_of, mapped(student, torch.neg), teacher)
    assert opposite == pytest.approx(value(loss_of, student, teacher), rel=1e-5)


def test_kdsvd_weighs_vectors_by_the_teachers_singular_values():
    s_BNC, t_BNC = token_pair()
    value_Bk = torch.linalg.svdvals(t_BNC)[:, :3]
    for vector_BCk in singular_vectors(s_BNC, t_BNC, 3, True):
        assert torch.allclose(vector_BCk.norm(dim=1), value_Bk / value_Bk.norm(dim=1)[:, None])


def test_the_sign_of_a_singular_vector_is_fixed():
    _, t_BNC = token_pair()
    (_, ours), (_, turned) = (singular_vectors(x, x, 3, True) for x in (t_BNC, -t_BNC))
    assert torch.allclose(ours, turned)
    assert (ours.amax(1) >= ours.amin(1).abs()).all()


def test_kdsvd_has_heads_only_where_channels_differ():
    same, different = (
        LOSSES.build(LOSSES.schema("kdsvd")(), make_shapes(dim, 16)) for dim in (16, 12)
    )
    assert not list(same.parameters())
    assert len(list(different.heads.parameters())) == 2 * len(different.map_pairs)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"maps": "last"}, "kdsvd: maps names one stage"),
        (
            {"maps": ["layer1", "layer4"], "k": 5},
            "k=5 exceeds the 4 singular vectors .* 'layer4' of",
        ),
    ],
)
def test_kdsvd_says_what_it_lacks(settings, message):
    with pytest.raises(UserError, match=message):
        build("kdsvd", **settings)
