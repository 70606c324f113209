"""Properties of FT and its learned factors."""

import torch
from intermediate_inputs import batch, build, make_inputs, maps
from torch import Tensor

from ssdistill.losses import Loss


def gradients(loss: Loss, part: str) -> list[Tensor]:
    student, teacher = make_inputs(loss)
    loss.zero_grad(set_to_none=False)
    loss(student, teacher, batch()).backward()
    return [p.grad.clone() for name, p in loss.named_parameters() if part in name]


def test_ft_summarizes_the_teacher_by_reconstruction_alone():
    alone, both = build("ft", reconstruction=0.0), build("ft", reconstruction=0.5)
    assert all(g.abs().max() == 0 for g in gradients(alone, "paraphraser"))
    _, teacher = make_inputs(both)
    factors_of, t = both.factors[0], teacher[0].maps[both.map_pairs[0].teacher]
    both.zero_grad()
    (0.5 * (factors_of.back(factors_of.paraphraser(t)) - t).square().mean()).backward()
    expected = [p.grad.clone() for p in factors_of.paraphraser.parameters()]
    for found, wanted in zip(gradients(both, "paraphraser"), expected, strict=True):
        assert torch.allclose(found, wanted, atol=1e-7)


def test_ft_translates_whatever_the_reconstruction_weighs():
    pair = [gradients(build("ft", reconstruction=r), "translator") for r in (0.0, 0.5)]
    assert all(torch.equal(a, b) for a, b in zip(*pair, strict=True))
    assert all(g.abs().max() > 0 for g in pair[0] if g.ndim > 1)


def test_a_factor_has_its_share_of_the_channels():
    for rate, width in ((0.5, 4), (0.25, 2), (0.01, 1)):
        factors_of = build("ft", rate=rate).factors[0]
        assert factors_of.paraphraser(maps(channels=8)).shape[1] == width
        assert factors_of.translator(maps(channels=6)).shape[1] == width
