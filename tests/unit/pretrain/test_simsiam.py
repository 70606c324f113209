import copy

import pytest
import torch
from torch import nn

from ssdistill.data.batch import Batch
from ssdistill.pretrain.simsiam import SimSiam, SimSiamPredictor, SimSiamProjector
from ssdistill.train.optim import OptimSettings, build_optimizer, set_rates

BATCH = Batch(torch.zeros(6, 16, 16, 3, dtype=torch.uint8), torch.arange(6), 0, 0, 10)


def two_views(seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(6, 3, 16, 16, generator=generator) for _ in range(2)]


@pytest.fixture
def simsiam(make_encoder):
    method = SimSiam(
        make_encoder(),
        projector=SimSiamProjector(hidden_dim=16, output_dim=8),
        predictor=SimSiamPredictor(hidden_dim=6),
    ).train()
    for module in method.encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)  # timm starts residual branches at zero
    return method


def by_hand(method, views, stopped=True):
    """-1/2 cos(p1, z2) - 1/2 cos(p2, z1), every view through the networks by itself."""
    z = [method.projector(method.encoder(view).embedding_BD) for view in views]
    p = [method.predictor(z_BP) for z_BP in z]
    aim = [z_BP.detach() if stopped else z_BP for z_BP in z]
    total = 0.0
    for p_BP, z_BP in ((p[0], aim[1]), (p[1], aim[0])):
        cosine_B = (p_BP * z_BP).sum(1) / (p_BP.norm(dim=1) * z_BP.norm(dim=1))
        total = total - cosine_B.mean() / 2
    return total


def gradients(method, loss):
    method.zero_grad()
    loss.backward()
    return {name: p.grad for name, p in method.named_parameters()}


def test_simsiams_loss_is_half_of_each_negative_cosine(simsiam):
    loss = simsiam(two_views(), BATCH)["simsiam"]
    assert loss.item() == pytest.approx(by_hand(simsiam, two_views()).item(), abs=1e-5)
    assert -1 <= loss.item() <= 1


def test_no_gradient_goes_through_simsiams_targets(simsiam):
    found = gradients(simsiam, simsiam(two_views(), BATCH)["simsiam"])
    stopped = gradients(simsiam, by_hand(simsiam, two_views()))
    open_ended = gradients(simsiam, by_hand(simsiam, two_views(), stopped=False))
    assert all(torch.allclose(found[name], stopped[name], atol=1e-5) for name in found)
    weight = "projector.layers.0.weight"
    assert not torch.allclose(found[weight], open_ended[weight], atol=1e-3)


def test_the_gradient_reaches_all_of_simsiam(simsiam):
    found = gradients(simsiam, simsiam(two_views(), BATCH)["simsiam"])
    assert all(found[n].abs().sum() > 0 for n, p in simsiam.named_parameters() if p.ndim > 1)


def test_simsiams_heads_are_the_papers(make_encoder):
    method = SimSiam(make_encoder())
    projector, predictor = list(method.projector.layers), list(method.predictor.layers)
    shapes = [m.weight.shape for m in [*projector, *predictor] if isinstance(m, nn.Linear)]
    assert shapes == [(2048, 16), (2048, 2048), (2048, 2048), (512, 2048), (2048, 512)]
    names = "Linear BatchNorm1d ReLU Linear BatchNorm1d ReLU Linear BatchNorm1d"
    assert " ".join(type(m).__name__ for m in projector) == names
    assert projector[-1].weight is None and projector[1].weight is not None
    assert all(m.bias is None for m in projector if isinstance(m, nn.Linear))
    assert " ".join(type(m).__name__ for m in predictor) == "Linear BatchNorm1d ReLU Linear"


def test_simsiams_predictor_can_keep_its_learning_rate(simsiam):
    settings = OptimSettings(kind="sgd", lr=0.5, warmup=0.0, constant=("predictor",))
    optimizer = build_optimizer(simsiam, settings)
    set_rates(optimizer, settings, 9, 10)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in simsiam.named_parameters():
        assert (rates[id(parameter)] == 0.5) == name.startswith("predictor."), name


def test_simsiams_loss_falls(simsiam):
    optimizer = torch.optim.SGD(simsiam.parameters(), lr=0.05)
    losses = []
    for _ in range(8):
        loss = simsiam(two_views(), BATCH)["simsiam"]
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.1


def test_simsiam_in_bf16_gives_float32_losses(simsiam):
    exact = simsiam(two_views(), BATCH)["simsiam"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = simsiam(two_views(), BATCH)["simsiam"]
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), abs=0.05)


def test_simsiam_resumes_bit_by_bit(simsiam):
    simsiam(two_views(), BATCH)
    other = copy.deepcopy(simsiam)
    for parameter in other.parameters():
        nn.init.ones_(parameter)
    other.load_state_dict(simsiam.state_dict())
    ahead, again = (m(two_views(2), BATCH)["simsiam"] for m in (simsiam, other))
    assert torch.equal(ahead, again)
    simsiam.eval(), other.eval()
    ahead, again = (m(two_views(2), BATCH)["simsiam"] for m in (simsiam, other))
    assert torch.equal(ahead, again)
