import copy

import numpy as np
import pytest
import torch
from lightly.loss import VICRegLoss
from torch import nn

from ssdistill.data.batch import Batch
from ssdistill.pretrain import vicreg
from ssdistill.pretrain.barlow_twins import WideProjector
from ssdistill.pretrain.vicreg import VICReg, squared_covariance, variance_hinge

SMALL = WideProjector(hidden_dim=16, output_dim=8)


def make_views(count=6, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(count, 3, 16, 16, generator=generator) for _ in range(2)]


def make_batch(count=6):
    images = torch.zeros(count, 16, 16, 3, dtype=torch.uint8)
    return Batch(images, torch.arange(count), 0, 0, 10)


def make_projections(count=7, width=5):
    """Some dimensions vary more than the hinge asks for, some less."""
    generator = torch.Generator().manual_seed(2)
    spread = torch.linspace(0.3, 1.8, width)
    return [4 + spread * torch.randn(count, width, generator=generator) for _ in range(2)]


def total_of(method, losses):
    weights = method.weights_at(0, 10)
    return sum(weights[name] * loss for name, loss in losses.items())


@pytest.fixture
def vic(make_encoder):
    method = VICReg(make_encoder(), projector=SMALL).train()
    for module in method.encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)  # timm starts residual branches at zero
    return method


def test_the_terms_of_vicreg_are_those_of_numpy(vic):
    z0, z1 = make_projections()
    a, b = z0.double().numpy(), z1.double().numpy()

    def hinge(x):
        return np.maximum(0, 1 - np.sqrt(np.var(x, axis=0, ddof=1) + 1e-4)).mean()

    def off_diagonal(x):
        covariance = np.cov(x, rowvar=False)
        return (covariance**2)[~np.eye(5, dtype=bool)].sum() / 5

    terms = vic.terms(z0, z1)
    assert terms["invariance"].item() == pytest.approx(((a - b) ** 2).mean(), rel=1e-5)
    assert terms["variance"].item() == pytest.approx((hinge(a) + hinge(b)) / 2, rel=1e-5)
    covariance = off_diagonal(a) + off_diagonal(b)
    assert terms["covariance"].item() == pytest.approx(covariance, rel=1e-5)
    assert 0 < terms["variance"].item() < 0.5


def test_vicreg_is_what_lightly_computes_in_one_process(vic):
    ours = [z.requires_grad_() for z in make_projections()]
    theirs = [z.requires_grad_() for z in make_projections()]
    total = total_of(vic, vic.terms(*ours))
    expected = VICRegLoss()(*theirs)
    total.backward()
    expected.backward()
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.allclose(mine.grad, other.grad, atol=1e-5)


def test_the_weights_of_vicreg_are_the_papers_unless_told_otherwise(vic, make_encoder):
    published = {"invariance": 25.0, "variance": 25.0, "covariance": 1.0}
    assert vic.weights_at(0, 10) == published
    assert vic(make_views(), make_batch()).keys() == published.keys()
    told = VICReg(
        make_encoder(),
        invariance_weight=1.0,
        variance_weight=2.0,
        covariance_weight=3.0,
        projector=SMALL,
    )
    assert told.weights_at(9, 10) == {"invariance": 1.0, "variance": 2.0, "covariance": 3.0}


def test_the_variance_of_vicreg_has_a_finite_gradient_where_there_is_none():
    z = torch.ones(4, 3, requires_grad=True)
    loss = variance_hinge(z)
    loss.backward()
    assert loss.item() == pytest.approx(1 - 0.01, rel=1e-5)
    assert torch.isfinite(z.grad).all()


def test_the_variance_of_vicreg_is_a_hinge():
    wide = 3 * torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    assert variance_hinge(wide).item() == 0
    assert variance_hinge(wide / 30).item() > 0.8


def test_the_covariance_of_vicreg_leaves_variances_alone():
    one = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    assert squared_covariance(7 * one + 3).item() == pytest.approx(0, abs=1e-6)
    same = one[:, :1].expand(4, 2)
    assert squared_covariance(same).item() == pytest.approx((4 / 3) ** 2, rel=1e-5)


def test_variance_and_covariance_are_those_of_the_images_of_all_processes(vic, monkeypatch):
    z0, z1 = make_projections(count=8)
    whole = vic.terms(z0, z1)
    elsewhere = iter([z0[3:], z1[3:]])
    monkeypatch.setattr(vicreg, "gather_with_gradient", lambda z: torch.cat([z, next(elsewhere)]))
    part = vic.terms(z0[:3], z1[:3])
    for name in ("variance", "covariance"):
        assert part[name].item() == pytest.approx(whole[name].item(), rel=1e-5)
    # Data-parallel training averages this one, as it averages losses.
    own = (z0[:3] - z1[:3]).square().mean().item()
    assert part["invariance"].item() == pytest.approx(own, rel=1e-5)


def test_vicreg_passes_each_view_on_its_own(vic):
    """So the batch norms see one view at a time: the loss is that of two separate passes."""
    a, b = make_views()
    z0, z1 = (vic.projector(vic.encoder(view).embedding_BD) for view in (a, b))
    expected, losses = vic.terms(z0, z1), vic([a, b], make_batch())
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(expected[name].item(), rel=1e-4), name


def test_the_gradient_reaches_every_parameter_of_vicreg(vic):
    total_of(vic, vic(make_views(), make_batch())).backward()
    for name, parameter in vic.named_parameters():
        assert parameter.grad is not None, name
        if parameter.ndim > 1:
            assert parameter.grad.abs().sum() > 0, name


def test_the_loss_of_vicreg_falls(vic):
    optimizer = torch.optim.SGD(vic.parameters(), lr=0.01)
    losses = []
    for _ in range(8):
        total = total_of(vic, vic(make_views(), make_batch()))
        losses.append(total.item())
        total.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.9 * losses[0]


def test_bf16_does_not_round_the_terms_of_vicreg(vic):
    z = make_projections(count=64, width=16)
    exact = vic.terms(*z)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert vic.projector(torch.zeros(2, 16)).dtype == torch.bfloat16
        vic.embed, vic.projector = lambda views: views, nn.Identity()
        rough = vic(z, make_batch())
    assert {name: loss.item() for name, loss in rough.items()} == {
        name: loss.item() for name, loss in exact.items()
    }


def test_bf16_gives_vicreg_float32_losses_near_the_exact_ones(vic):
    vic.eval()
    views = make_views(count=12)
    exact = vic(views, make_batch(12))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = vic(views, make_batch(12))
    assert all(loss.dtype == torch.float32 for loss in rough.values())
    ours, expected = total_of(vic, rough).item(), total_of(vic, exact).item()
    assert ours == pytest.approx(expected, rel=0.05)


def test_vicreg_resumes_bit_for_bit(vic, make_encoder):
    vic(make_views(), make_batch())
    other = VICReg(make_encoder(seed=1), projector=SMALL).train()
    other.load_state_dict(copy.deepcopy(vic.state_dict()))
    views = make_views(seed=5)
    first, second = (method(views, make_batch()) for method in (vic, other))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_projector_of_vicreg_ends_in_a_linear_layer_without_bias(vic):
    last = vic.projector.layers[-1]
    assert isinstance(last, nn.Linear) and last.bias is None
