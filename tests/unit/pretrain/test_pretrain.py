import copy
import math

import pytest
import torch
from torch import nn

from ssdistill.data.batch import Batch
from ssdistill.pretrain.byol import BYOL, BYOLPredictor, BYOLProjector
from ssdistill.pretrain.simclr import SimCLR, SimCLRProjector

HEADS = {
    "projector": BYOLProjector(hidden_dim=16, output_dim=8),
    "predictor": BYOLPredictor(hidden_dim=16),
}

METHODS = {
    "simclr": lambda encoder: SimCLR(encoder, projector=SimCLRProjector(output_dim=8)),
    "byol": lambda encoder: BYOL(encoder, **HEADS),
}


def make_batch(count=6):
    images = torch.zeros(count, 16, 16, 3, dtype=torch.uint8)
    return Batch(images, torch.arange(count), 0, 0, 10)


def make_views(count=6):
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(count, 3, 16, 16, generator=generator) for _ in range(2)]


@pytest.fixture(params=METHODS)
def method(request, make_encoder):
    return METHODS[request.param](make_encoder()).train()


class Spy(nn.Module):
    """A criterion that notes what it was given and in which number format."""

    def __init__(self, criterion):
        super().__init__()
        self.criterion, self.seen = criterion, []

    def forward(self, *tensors):
        autocast = torch.is_autocast_enabled("cpu")
        self.seen.append((tuple(t.dtype for t in tensors), autocast))
        return self.criterion(*tensors)


def test_the_loss_is_named_weighted_and_falls(method):
    assert method.weights_at(0, 10) == {method.kind: 1.0}
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for step in range(12):
        (loss,) = method(make_views(), make_batch()).values()
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(step, 12)
    assert losses[-1] < losses[0]


def test_the_label_free_metrics_see_the_first_view_without_gradient(method):
    method.eval()
    views = make_views()
    method(views, make_batch())
    expected = method.encoder(views[0]).embedding_BD
    assert torch.allclose(method.last_embeddings[0], expected, atol=1e-5)
    assert not method.last_embeddings[0].requires_grad


def test_losses_are_computed_in_float32_under_autocast(method):
    method.criterion = Spy(method.criterion)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        method(make_views(), make_batch())
        inside = method.projector(torch.zeros(2, method.encoder.embed_dim)).dtype
    assert inside == torch.bfloat16
    assert set(method.criterion.seen) == {((torch.float32, torch.float32), False)}


def test_both_views_count_alike(method):
    method.eval()
    first, second = make_views()
    ahead = method([first, second], make_batch())[method.kind]
    swapped = method([second, first], make_batch())[method.kind]
    assert ahead.item() == pytest.approx(swapped.item(), rel=1e-4)


def test_nt_xent_of_two_orthogonal_pairs_is_what_one_computes_by_hand(make_encoder):
    for temperature in (1.0, 0.5):
        method = SimCLR(make_encoder(), temperature=temperature)
        z_BD = torch.tensor([[3.0, 0.0], [0.0, 0.5]])
        positive = math.exp(1 / temperature)
        by_hand = -math.log(positive / (positive + 2))
        assert method.criterion(z_BD, z_BD).item() == pytest.approx(by_hand, abs=1e-5)


def test_simclr_projects_to_the_widths_it_is_told(make_encoder):
    method = SimCLR(
        make_encoder(), projector=SimCLRProjector(hidden_dim=20, output_dim=5, batch_norm="none")
    )
    linear = [m for m in method.projector.modules() if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linear] == [(16, 20), (20, 5)]
    assert not any(isinstance(m, nn.BatchNorm1d) for m in method.projector.modules())
    assert SimCLR(make_encoder()).projector(torch.zeros(2, 16)).shape == (2, 128)


@pytest.fixture
def byol(make_encoder):
    return METHODS["byol"](make_encoder()).train()


def online_state(byol):
    return nn.ModuleList([byol.encoder, byol.projector]).state_dict()


def test_byol_compares_directions_with_the_other_view(byol):
    """2 - 2 cos, once per direction, between online prediction and target projection."""
    byol.eval()
    a, b = make_views()
    encoder, projector = byol.target

    def predict(x):
        return byol.predictor(byol.projector(byol.encoder(x).embedding_BD))

    def aim(x):
        return projector(encoder(x).embedding_BD)

    by_hand = sum(
        (2 - 2 * nn.functional.cosine_similarity(predict(x), aim(y))).mean()
        for x, y in ((a, b), (b, a))
    )
    assert byol([a, b], make_batch())["byol"].item() == pytest.approx(by_hand.item(), rel=1e-4)


def test_byols_target_starts_equal_and_takes_no_gradient(byol):
    online, target = online_state(byol), byol.target.state_dict()
    assert online.keys() == target.keys()
    assert all(torch.equal(online[name], target[name]) for name in online)
    byol(make_views(), make_batch())["byol"].backward()
    assert all(p.grad is None and not p.requires_grad for p in byol.target.parameters())


def test_byols_target_moves_only_after_a_step(byol):
    optimizer = torch.optim.SGD([p for p in byol.parameters() if p.requires_grad], lr=0.1)
    before = copy.deepcopy(dict(byol.target.named_parameters()))
    byol(make_views(), make_batch())["byol"].backward()
    optimizer.step()
    target = dict(byol.target.named_parameters())
    assert all(torch.equal(target[name], before[name]) for name in target)
    byol.after_step(0, 10)
    online = dict(nn.ModuleList([byol.encoder, byol.projector]).named_parameters())
    for name in target:
        expected = 0.99 * before[name] + 0.01 * online[name]
        assert torch.allclose(target[name], expected, atol=1e-6), name


def test_byols_target_moves_less_and_less(byol):
    shares = []
    for step in (0, 5, 9):
        weight = byol.target[0].net.conv1.weight
        with torch.no_grad():
            byol.encoder.net.conv1.weight.fill_(1.0)
            weight.fill_(0.0)
        byol.after_step(step, 10)
        shares.append(weight.mean().item())
    assert shares[0] == pytest.approx(0.01, rel=1e-3)
    assert shares[1] == pytest.approx(0.005, rel=1e-3)
    assert 0 < shares[2] < 0.001


def test_a_method_is_resumed_with_its_target(byol, make_encoder):
    byol.after_step(0, 10)
    with torch.no_grad():
        byol.target[0].net.conv1.weight.fill_(3.0)
    other = METHODS["byol"](make_encoder(seed=1))
    other.load_state_dict(byol.state_dict())
    assert torch.equal(
        other.target[0].net.conv1.weight, torch.full_like(byol.encoder.net.conv1.weight, 3.0)
    )


def test_simclr_projects_both_views_in_one_batch(make_encoder):
    """Batch statistics of one view alone would tell the views apart."""
    method = SimCLR(make_encoder(), temperature=0.5, projector=SimCLRProjector(output_dim=8))
    twin = copy.deepcopy(method).train()
    (found,) = method.train()(make_views(), make_batch()).values()
    z_BP = twin.projector(torch.cat(twin.embed(make_views())))
    z_BP = nn.functional.normalize(z_BP, dim=1)
    logits_BB = z_BP @ z_BP.T / 0.5
    logits_BB.fill_diagonal_(float("-inf"))
    partner_B = (torch.arange(12) + 6) % 12
    by_hand = nn.functional.cross_entropy(logits_BB, partner_B)
    assert torch.allclose(found, by_hand, atol=1e-5)
    norms = [m for m in method.projector.modules() if isinstance(m, nn.BatchNorm1d)]
    assert norms and all(norm.num_batches_tracked == 1 for norm in norms)
