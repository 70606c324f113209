import copy

import numpy as np
import pytest
import torch
from lightly.loss import BarlowTwinsLoss
from torch import nn

from ssdistill.artifacts.heads import pack_head
from ssdistill.data.batch import Batch
from ssdistill.pretrain import barlow_twins
from ssdistill.pretrain.barlow_twins import BarlowTwins, WideProjector

SMALL = WideProjector(hidden_dim=16, output_dim=8)


def make_views(count=6, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(count, 3, 16, 16, generator=generator) for _ in range(2)]


def make_batch(count=6):
    images = torch.zeros(count, 16, 16, 3, dtype=torch.uint8)
    return Batch(images, torch.arange(count), 0, 0, 10)


def make_projections(count=7, width=5):
    generator = torch.Generator().manual_seed(2)
    return [3 + 2 * torch.randn(count, width, generator=generator) for _ in range(2)]


@pytest.fixture
def twins(make_encoder):
    method = BarlowTwins(make_encoder(), projector=SMALL).train()
    for module in method.encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)  # timm starts residual branches at zero
    return method


def by_hand(z0, z1, weight):
    """Eq. 1 from numpy's Pearson correlation, entry by entry."""
    width = z0.shape[1]
    total = 0.0
    for i in range(width):
        for j in range(width):
            c = np.corrcoef(z0[:, i].double(), z1[:, j].double())[0, 1]
            total += (1 - c) ** 2 if i == j else weight * c**2
    return total


@pytest.mark.parametrize("weight", [0.0, 0.0051, 0.7])
def test_barlow_twins_is_equation_1(twins, weight):
    z0, z1 = make_projections()
    twins.off_diagonal_weight = weight
    assert twins.loss(z0, z1).item() == pytest.approx(by_hand(z0, z1, weight), rel=1e-4)


def test_barlow_twins_is_what_lightly_computes_in_one_process(twins):
    ours = [z.requires_grad_() for z in make_projections()]
    theirs = [z.requires_grad_() for z in make_projections()]
    expected = BarlowTwinsLoss(0.0051)(*theirs)
    loss = twins.loss(*ours)
    loss.backward()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.allclose(mine.grad, other.grad, atol=1e-6)


def test_whitened_twins_cost_nothing_and_scale_or_shift_changes_nothing(twins):
    z = torch.linalg.qr(torch.randn(9, 4, generator=torch.Generator().manual_seed(0))).Q
    z = torch.linalg.qr(torch.cat([torch.ones(9, 1), z], dim=1)).Q[:, 1:]  # centered, orthogonal
    assert twins.loss(9 * z, 9 * z).item() == pytest.approx(0, abs=1e-4)
    z0, z1 = make_projections()
    assert twins.loss(5 * z0 + 2, z1).item() == pytest.approx(twins.loss(z0, z1).item(), rel=1e-4)


def test_scale_weighs_the_loss_in_the_total_and_is_not_part_of_it(make_encoder):
    losses = []
    for scale in (1.0, 0.1):
        method = BarlowTwins(make_encoder(), scale=scale, projector=SMALL)
        assert method.weights_at(3, 10) == {"barlow_twins": scale}
        losses.append(method.loss(*make_projections()).item())
    assert losses[0] == losses[1]


def test_the_correlation_is_that_of_the_images_of_all_processes(twins, monkeypatch):
    z0, z1 = make_projections(count=8)
    whole = twins.loss(z0, z1).item()
    elsewhere = iter([z0[3:], z1[3:]])
    monkeypatch.setattr(
        barlow_twins, "gather_with_gradient", lambda z: torch.cat([z, next(elsewhere)])
    )
    assert twins.loss(z0[:3], z1[:3]).item() == pytest.approx(whole, rel=1e-5)


def test_barlow_twins_passes_each_view_on_its_own(twins):
    """So the batch norms see one view at a time: the loss is that of two separate passes."""
    a, b = make_views()
    z0, z1 = (twins.projector(twins.encoder(view).embedding_BD) for view in (a, b))
    loss = twins([a, b], make_batch())["barlow_twins"]
    assert loss.item() == pytest.approx(twins.loss(z0, z1).item(), rel=1e-4)


def test_the_gradient_reaches_every_parameter_of_barlow_twins(twins):
    twins(make_views(), make_batch())["barlow_twins"].backward()
    for name, parameter in twins.named_parameters():
        assert parameter.grad is not None, name
        if parameter.ndim > 1:
            assert parameter.grad.abs().sum() > 0, name


def test_the_loss_of_barlow_twins_falls(twins):
    optimizer = torch.optim.SGD(twins.parameters(), lr=0.01)
    losses = []
    for _ in range(8):
        loss = twins(make_views(), make_batch())["barlow_twins"]
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.8 * losses[0]


def test_bf16_gives_barlow_twins_a_float32_loss_near_the_exact_one(twins):
    twins.eval()
    views = make_views(count=12)
    exact = twins(views, make_batch(12))["barlow_twins"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = twins(views, make_batch(12))["barlow_twins"]
        seen = twins.projector(torch.zeros(2, 16)).dtype
    assert seen == torch.bfloat16 and rough.dtype == torch.float32
    assert rough.item() == pytest.approx(exact.item(), rel=0.05)


def test_bf16_does_not_round_the_correlations_of_barlow_twins(twins):
    z = make_projections(count=64, width=16)
    exact = twins.loss(*z)
    twins.embed = lambda views: views
    twins.projector = nn.Identity()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert twins(z, make_batch())["barlow_twins"].item() == exact.item()


def test_barlow_twins_resumes_bit_for_bit(twins, make_encoder):
    twins(make_views(), make_batch())
    other = BarlowTwins(make_encoder(seed=1), projector=SMALL).train()
    other.load_state_dict(copy.deepcopy(twins.state_dict()))
    views = make_views(seed=5)
    first, second = (m(views, make_batch())["barlow_twins"] for m in (twins, other))
    assert torch.equal(first, second)


def test_the_projector_of_barlow_twins_is_as_published(make_encoder):
    projector = BarlowTwins(make_encoder(), projector=WideProjector(hidden_dim=24)).projector
    kinds = [type(layer) for layer in projector.layers]
    hidden = [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert kinds == [*hidden, *hidden, nn.Linear]
    assert WideProjector().hidden_dim == WideProjector().output_dim == 8192
    linear = [layer for layer in projector.layers if isinstance(layer, nn.Linear)]
    assert all(layer.bias is None for layer in linear)  # the last one would get no gradient
    assert [layer.out_features for layer in linear] == [24, 24, 8192]
    normed = WideProjector(hidden_dim=24, output_dim=8, batch_norm="all").build(16)
    assert isinstance(normed.layers[-1], nn.BatchNorm1d)


def test_the_projector_of_barlow_twins_can_be_saved(twins):
    _, layers = pack_head(twins.projector)
    assert layers[-1] == {"kind": "linear", "in_dim": 16, "out_dim": 8, "bias": False}
