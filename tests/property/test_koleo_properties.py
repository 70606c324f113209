"""Properties of KoLeo for arbitrary inputs."""

import math

import pytest
import torch
from prototype_inputs import batch_of, random

from ssdistill.losses import Shapes
from ssdistill.losses.koleo import KoLeo
from ssdistill.models.representation import Outputs, Representation


def koleo_of(*views):
    loss = KoLeo(Shapes(8, 8, num_samples=64))
    return float(loss(Outputs([Representation(x) for x in views]), Outputs(), batch_of()))


def test_koleo_is_the_log_distance_to_the_nearest_neighbor():
    angle = torch.tensor([0.0, 0.1, 2.0])
    x_BD = torch.stack([angle.cos(), angle.sin()], 1) * torch.tensor([[1.0], [5.0], [0.2]])
    chord = [2 * math.sin(half / 2) for half in (0.1, 0.1, 1.9)]
    assert koleo_of(x_BD) == pytest.approx(-sum(map(math.log, chord)) / 3, rel=1e-4)


def test_koleo_prefers_spread_embeddings_and_each_view_is_its_own_batch():
    spread, bunched = torch.eye(8), torch.eye(8)[:1] + 0.1 * random(8, 8, seed=0)
    assert koleo_of(spread) < koleo_of(bunched) - 0.5
    both = koleo_of(spread, spread)
    assert both == pytest.approx(koleo_of(spread))
    assert both != pytest.approx(koleo_of(torch.cat([spread, spread])))


@pytest.mark.parametrize("x_BD", [torch.ones(4, 8), torch.zeros(4, 8)], ids=["alike", "zero"])
def test_koleo_of_collapsed_embeddings_is_finite(x_BD):
    x_BD = x_BD.clone().requires_grad_()
    loss = KoLeo(Shapes(8, 8, num_samples=64))
    value = loss(Outputs([Representation(x_BD)]), Outputs(), batch_of())
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(x_BD.grad).all()
