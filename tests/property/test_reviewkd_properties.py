"""Properties of ReviewKD, its context and its fusions."""

import pytest
import torch
from intermediate_inputs import build, make_inputs, maps
from torch import nn

from ssdistill.losses.reviewkd import Fusion, hierarchical_context
from ssdistill.testing.synthetic import make_shapes


@pytest.mark.parametrize("side", [1, 2, 3, 8])
def test_hcl_of_a_constant_offset_is_its_square(side):
    s = maps(side=side)
    assert float(hierarchical_context(s + 0.3, s)) == pytest.approx(0.09, rel=1e-4)


def test_hcl_sees_the_context():
    """Neighbors that err in opposite directions are right on coarser grids."""
    sign = torch.ones(8, 8)
    sign[:, ::2] = -1
    s = maps(side=8)
    # Own grid 1, then 1/2 + 1/4 + 1/8 that see nothing.
    expected = 0.09 / (1 + 1 / 2 + 1 / 4 + 1 / 8)
    assert float(hierarchical_context(s + 0.3 * sign, s)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "names", [["layer3"], ["layer1", "layer3"], list(make_shapes().teacher_norms)]
)
def test_reviewkd_explains_each_stage_with_the_deeper_ones(names):
    loss_of = build("reviewkd", maps=names)
    student, teacher = make_inputs(loss_of)
    pairs = loss_of.pairs_of(student[0], teacher[0])
    assert len(pairs) == len(names) + 1
    sizes = [t.shape[2:] for _, t in pairs]
    guesses = loss_of.review([s for s, _ in pairs], sizes)
    assert [g.shape for g in guesses] == [t.shape for _, t in pairs]
    for k, guess in enumerate(guesses):
        found = torch.autograd.grad(
            guess.square().sum(), [s for s, _ in pairs], retain_graph=True, allow_unused=True
        )
        assert [g is not None for g in found] == [i >= k for i in range(len(pairs))]


@pytest.mark.parametrize("bias", [(50.0, -50.0), (-50.0, 50.0), (0.0, 0.0), (1.0, -1.0)])
def test_a_fusion_takes_its_shares_of_the_stage_and_of_what_is_deeper(bias):
    fusion = Fusion(6, 5, 7, deeper=True).eval()
    nn.init.zeros_(fusion.attend.weight)
    fusion.attend.bias.data = torch.tensor(bias)
    x, deeper = maps(0, side=4), maps(1, channels=5, side=2)
    joined, guess = fusion(x, deeper, (8, 8))
    ours, theirs = torch.tensor(bias).sigmoid()
    finer = deeper.repeat_interleave(2, 2).repeat_interleave(2, 3)
    expected = (ours * fusion.reduce(x) + theirs * finer).repeat_interleave(2, 2)
    assert torch.allclose(joined, expected.repeat_interleave(2, 3), atol=1e-6)
    assert torch.equal(guess, fusion.expand(joined))
