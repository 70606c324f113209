import math

import numpy as np
import pytest
import torch
from torch import nn

from ssdistill.data.batch import Batch
from ssdistill.losses.base import contrast
from ssdistill.losses.base.contrast import batch_contrast
from ssdistill.models.backbones import EncoderSettings, build_encoder
from ssdistill.pretrain.moco_v3 import MoCoV3, MoCoV3Predictor, MoCoV3Projector

BATCH = Batch(torch.zeros(6, 16, 16, 3, dtype=torch.uint8), torch.arange(6), 0, 0, 10)
NARROW = {
    "projector": MoCoV3Projector(hidden_dim=12, output_dim=5),
    "predictor": MoCoV3Predictor(hidden_dim=10),
}


def two_views(seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(6, 3, 16, 16, generator=generator) for _ in range(2)]


def make_vit(**changes):
    torch.manual_seed(0)
    args = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 1, "num_heads": 2}
    return build_encoder(EncoderSettings(name="vit_tiny_patch16_224", args=args | changes), 16)


@pytest.fixture
def make_v3(make_encoder):
    def make(seed=0, **settings):
        method = MoCoV3(make_encoder(seed), **NARROW | settings).train()
        for module in [*method.encoder.modules(), *method.target.modules()]:
            if isinstance(module, nn.BatchNorm2d):
                nn.init.ones_(module.weight)  # timm starts residual branches at zero
        return method

    return make


def cross_entropy_by_hand(x_BP, y_BP, temperature):
    x_BP, y_BP = (z.detach().numpy().astype(np.float64) for z in (x_BP, y_BP))
    x_BP = x_BP / np.linalg.norm(x_BP, axis=1, keepdims=True)
    y_BP = y_BP / np.linalg.norm(y_BP, axis=1, keepdims=True)
    losses = []
    for own, x_P in enumerate(x_BP):
        shares = np.exp([x_P @ y_P / temperature for y_P in y_BP])
        losses.append(-np.log(shares[own] / shares.sum()))
    return np.mean(losses)


def test_batch_contrast_of_orthogonal_pairs_is_what_one_computes_by_hand():
    x_BP = torch.tensor([[3.0, 0.0], [0.0, 0.5]])
    expected = -math.log(math.e**2 / (math.e**2 + 1))
    assert batch_contrast(x_BP, x_BP, 0.5).item() == pytest.approx(expected, abs=1e-6)
    swapped = -math.log(1 / (math.e**2 + 1))
    assert batch_contrast(x_BP, x_BP.flip(0), 0.5).item() == pytest.approx(swapped, abs=1e-6)


def test_batch_contrast_of_two_processes_is_that_of_all_rows(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    x_BP, y_BP = (torch.randn(6, 4, generator=generator) for _ in range(2))
    whole = batch_contrast(x_BP, y_BP, 0.3)
    everything = nn.functional.normalize(y_BP, dim=1)
    monkeypatch.setattr(contrast, "gather_with_gradient", lambda rows: everything)
    parts = []
    for number in range(2):
        monkeypatch.setattr(contrast, "rank", lambda number=number: number)
        mine = slice(3 * number, 3 * number + 3)
        parts.append(batch_contrast(x_BP[mine], y_BP[mine], 0.3))
    assert torch.stack(parts).mean().item() == pytest.approx(whole.item(), abs=1e-6)


def test_v3s_loss_is_twice_the_temperature_times_both_cross_entropies(make_v3):
    """Every view by itself in train mode; keys of the moving averages of encoder and projector."""
    method = make_v3(temperature=0.3)
    with torch.no_grad():
        for parameter in method.target.parameters():
            parameter.mul_(1.5).add_(0.01)  # unlike the trained network
    loss = method(two_views(), BATCH)["moco_v3"]
    encoder, projector = method.target
    q = [method.predictor(method.projector(method.encoder(v).embedding_BD)) for v in two_views()]
    k = [projector(encoder(v).embedding_BD) for v in two_views()]
    pairs = ((q[0], k[1]), (q[1], k[0]))
    expected = 2 * 0.3 * sum(cross_entropy_by_hand(*pair, 0.3) for pair in pairs)
    assert loss.item() == pytest.approx(expected, abs=1e-4)


def describe(head):
    return " ".join(
        f"{m.in_features}-{m.out_features}" if isinstance(m, nn.Linear) else type(m).__name__
        for m in head.layers
    )


def test_v3s_heads_for_a_resnet_are_the_papers(make_encoder):
    method = MoCoV3(make_encoder())
    assert method.temperature == 1.0
    assert describe(method.projector) == "16-4096 BatchNorm1d ReLU 4096-256 BatchNorm1d"
    assert describe(method.predictor) == "256-4096 BatchNorm1d ReLU 4096-256"
    assert method.projector.layers[-1].weight is None
    assert method.projector.layers[1].weight is not None


def test_v3s_heads_for_a_vision_transformer_are_the_papers():
    method = MoCoV3(make_vit())
    assert method.temperature == 0.2
    hidden = "BatchNorm1d ReLU"
    expected = f"32-4096 {hidden} 4096-4096 {hidden} 4096-256 BatchNorm1d"
    assert describe(method.projector) == expected
    assert describe(method.predictor) == f"256-4096 {hidden} 4096-256 BatchNorm1d"
    assert method.projector.layers[-1].weight is method.predictor.layers[-1].weight is None


def test_what_is_set_for_v3_takes_the_place_of_the_papers(make_encoder):
    method = MoCoV3(
        make_vit(),
        temperature=0.5,
        projector=MoCoV3Projector(hidden_dim=8, depth=2, output_dim=4),
        predictor=MoCoV3Predictor(hidden_dim=8, batch_norm="none"),
    )
    assert method.temperature == 0.5
    assert describe(method.projector) == "32-8 BatchNorm1d ReLU 8-4 BatchNorm1d"
    assert describe(method.predictor) == "4-8 ReLU 8-4"


@pytest.mark.parametrize("frozen", [True, False])
def test_v3_freezes_the_projection_of_patches_unless_told_not_to(frozen):
    method = MoCoV3(make_vit(), freeze_patch_embedding=frozen, **NARROW).train()
    method(two_views(), BATCH)["moco_v3"].backward()
    for name, parameter in method.encoder.named_parameters():
        still = frozen and "patch_embed.proj" in name
        assert parameter.requires_grad == (not still), name
        assert (parameter.grad is None) == still, name


def test_v3s_gradient_reaches_the_query_network_and_predictor_alone(make_v3):
    method = make_v3()
    method(two_views(), BATCH)["moco_v3"].backward()
    online = nn.ModuleList([method.encoder, method.projector, method.predictor])
    trained = [p for p in method.parameters() if p.requires_grad]
    assert {id(p) for p in trained} == {id(p) for p in online.parameters()}
    assert all(p.grad.abs().sum() > 0 for p in trained if p.ndim > 1)
    assert all(p.grad is None for p in method.target.parameters())


def test_v3s_momentum_rises_to_one(make_v3):
    shares = []
    for step in (0, 5, 10):
        method = make_v3()
        with torch.no_grad():
            method.projector.layers[0].weight.fill_(1.0)
            method.target[1].layers[0].weight.fill_(0.0)
        method.after_step(step, 10)
        shares.append(method.target[1].layers[0].weight.mean().item())
    assert shares == pytest.approx([0.01, 0.005, 0.0], rel=1e-3, abs=1e-9)


def test_v3s_loss_falls(make_v3):
    method = make_v3(temperature=0.2)
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for step in range(8):
        loss = method(two_views(), BATCH)["moco_v3"]
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        method.after_step(step, 8)
    assert losses[-1] < losses[0] - 0.1


def test_v3_in_bf16_gives_float32_losses(make_v3):
    exact = make_v3()(two_views(), BATCH)["moco_v3"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = make_v3()(two_views(), BATCH)["moco_v3"]
        x_BP = torch.tensor([[1.0, 0.001], [1.0, -0.001]])
        fine = batch_contrast(x_BP, x_BP, 1e-4)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), abs=0.1)
    # Cosines that bf16 cannot tell from 1.
    assert fine.item() == pytest.approx(batch_contrast(x_BP, x_BP, 1e-4).item(), rel=1e-5)
    assert fine.item() < math.log(2) - 0.005


def test_v3_resumes_bit_by_bit(make_v3):
    method, other = make_v3(), make_v3(seed=1)
    method(two_views(), BATCH)
    nn.init.ones_(method.projector.layers[0].weight)
    method.after_step(0, 10)
    other.load_state_dict(method.state_dict())
    ahead, again = (m(two_views(2), BATCH)["moco_v3"] for m in (method, other))
    assert torch.equal(ahead, again)
