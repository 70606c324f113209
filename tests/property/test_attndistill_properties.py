"""Which attention AttnDistill depends on, and which it ignores."""

import pytest
import torch
from intermediate_inputs import COUNT, batch, build
from torch import Tensor

from ssdistill.losses import Loss, Shapes
from ssdistill.losses.attndistill import (
    attention_divergence,
    class_and_patches,
    merged_heads,
    on_another_grid,
)
from ssdistill.models.representation import Outputs, Representation


def test_attention_divergence_is_zero_between_equals_only():
    logits = torch.randn(COUNT, 3, 10)
    log_p = logits.log_softmax(-1)
    assert float(attention_divergence(log_p, log_p, 5.0)) == pytest.approx(0, abs=1e-7)
    assert float(attention_divergence(log_p.flip(2), log_p, 5.0)) > 0.01
    merged = (merged_heads(x, 5.0) for x in (log_p, log_p.flip(1)))
    assert torch.allclose(*merged)


def test_merged_attention_has_bounds():
    sharp = torch.full((1, 1, 10), -100.0)
    sharp[..., 3] = 0.0
    p_BN = merged_heads(sharp.log_softmax(-1), 1.0)
    assert float(p_BN.sum()) == pytest.approx(1)
    scale = 0.996 + 9e-5
    assert float(p_BN[0, 3]) == pytest.approx(0.996 / scale, rel=1e-5)
    assert float(p_BN[0, 0]) == pytest.approx(1e-5 / scale, rel=1e-4)


@pytest.mark.parametrize("size", [(2, 2), (8, 8), (3, 3)])
def test_on_another_grid_the_class_token_keeps_its_share(size):
    log_p = torch.randn(COUNT, 3, 17).log_softmax(-1)
    moved = on_another_grid(log_p, (4, 4), size).exp()
    assert moved.shape == (COUNT, 3, 1 + size[0] * size[1])
    assert torch.allclose(moved[..., 0], log_p[..., 0].exp())
    assert torch.allclose(moved.sum(-1), torch.ones(COUNT, 3))


def test_on_another_grid_attention_stays_where_it_was():
    p = torch.zeros(1, 1, 17)
    p[..., 0], p[..., 1 + 4 * 3 + 2] = 0.25, 0.75
    moved = on_another_grid(p.log(), (4, 4), (2, 2)).exp()[0, 0]
    assert torch.allclose(moved, torch.tensor([0.25, 0, 0, 0, 0.75]), atol=1e-6)


def attention_shapes(student_tokens: int, teacher_tokens: int) -> Shapes:
    """Patches on 2x2 and 4x4 grids; whatever is left are the class token and registers."""
    return Shapes(
        student_dim=6,
        teacher_dim=8,
        num_samples=64,
        student_maps={"blocks.1": (6, 2, 2), "attention:blocks.1": (2, 1, student_tokens)},
        teacher_maps={"blocks.1": (8, 4, 4), "attention:blocks.1": (4, 1, teacher_tokens)},
    )


def attention_value(loss: Loss, s_BHN: Tensor, t_BHN: Tensor) -> float:
    ours = Outputs(
        [Representation(torch.ones(COUNT, 6), maps={"attention:blocks.1": s_BHN[:, :, None]})]
    )
    theirs = Outputs(
        [Representation(torch.ones(COUNT, 8), maps={"attention:blocks.1": t_BHN[:, :, None]})]
    )
    return float(loss(ours, theirs, batch()).detach())


def test_registers_are_left_out_between_unlike_networks():
    torch.manual_seed(3)
    s, t = torch.randn(COUNT, 2, 5), torch.randn(COUNT, 4, 17)
    plain = attention_value(build("attndistill", attention_shapes(5, 17)), s, t)
    registers = torch.full((COUNT, 4, 4), 7.0)
    with_registers = torch.cat([t[..., :1], registers, t[..., 1:]], -1)
    loss_of = build("attndistill", attention_shapes(5, 21))
    assert attention_value(loss_of, s, with_registers) == pytest.approx(plain, rel=1e-5)
    assert torch.equal(class_and_patches(with_registers, (4, 4)), t)


def test_a_shift_of_a_heads_logits_changes_nothing():
    torch.manual_seed(3)
    s, t = torch.randn(COUNT, 2, 5), torch.randn(COUNT, 4, 17)
    loss_of = build("attndistill", attention_shapes(5, 17))
    shifted = attention_value(loss_of, s + torch.randn(COUNT, 2, 1), t)
    assert shifted == pytest.approx(attention_value(loss_of, s, t), rel=1e-5)


def test_attndistill_weighs_its_two_terms():
    torch.manual_seed(3)
    s, t = torch.randn(COUNT, 2, 5), torch.randn(COUNT, 4, 17)
    known = attention_shapes(5, 17)
    first, second, third = (
        attention_value(build("attndistill", known, attention_weight=w), s, t)
        for w in (0.0, 1.0, 20.0)
    )
    assert second > first > 0
    assert third - first == pytest.approx(20 * (second - first), rel=1e-4)
