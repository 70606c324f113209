import copy

import numpy as np
import pytest
import torch
from torch import nn

from ssdistill.data.batch import Batch
from ssdistill.pretrain.nnclr import NNCLR, NNCLRPredictor, NNCLRProjector

BATCH = Batch(torch.zeros(6, 16, 16, 3, dtype=torch.uint8), torch.arange(6), 0, 0, 10)
NARROW = {
    "queue": 16,
    "projector": NNCLRProjector(hidden_dim=12, output_dim=5),
    "predictor": NNCLRPredictor(hidden_dim=10),
}


def two_views(seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(6, 3, 16, 16, generator=generator) for _ in range(2)]


@pytest.fixture
def make_nnclr(make_encoder):
    def make(seed=0, **settings):
        method = NNCLR(make_encoder(seed), **NARROW | settings).train()
        for module in method.encoder.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.ones_(module.weight)  # timm starts residual branches at zero
        return method

    return make


def unit_rows(x_BP):
    x_BP = x_BP.detach().numpy().astype(np.float64)
    return x_BP / np.linalg.norm(x_BP, axis=1, keepdims=True)


def nnclr_by_hand(z, p, queue_KP, temperature):
    """Algorithm 1 for unit rows z, p of both views, image by image."""
    losses = []
    for first, second in ((0, 1), (1, 0)):
        for own, z_P in enumerate(z[first]):
            nearest_P = min(queue_KP, key=lambda q_P, z_P=z_P: np.linalg.norm(q_P - z_P))
            shares = np.exp(p[second] @ nearest_P / temperature)
            losses.append(-np.log(shares[own] / shares.sum()))
    return np.mean(losses)


def outputs(method, views):
    """Unit z and p of every view, each through the networks by itself."""
    z = [method.projector(method.encoder(view).embedding_BD) for view in views]
    return [unit_rows(z_BP) for z_BP in z], [unit_rows(method.predictor(z_BP)) for z_BP in z]


def test_nnclrs_loss_contrasts_the_nearest_neighbors_with_the_other_views_predictions(make_nnclr):
    method = make_nnclr(temperature=0.4)
    queue = method.bank["embedding"].double().numpy()
    loss = method(two_views(), BATCH)["nnclr"]
    expected = nnclr_by_hand(*outputs(method, two_views()), queue, 0.4)
    assert loss.item() == pytest.approx(expected, abs=1e-4)


def test_nnclrs_neighbor_is_the_nearest_by_angle(make_nnclr):
    method = make_nnclr(queue=3)
    rows = torch.tensor([[1.0, 0, 0, 0, 0], [0, 1.0, 0, 0, 0], [0.6, 0, 0.8, 0, 0]])
    method.bank.embedding.copy_(rows)
    z_BP = torch.tensor([[0.1, 5.0, 0, 0, 0], [0.0, 0, 0.01, 0, 0], [90.0, 1, 1, 0, 0]])
    assert torch.equal(method.nearest(z_BP), rows[[1, 2, 0]])


def test_the_first_views_embeddings_join_nnclrs_queue_after_scoring(make_nnclr):
    method = make_nnclr(queue=8)
    start = method.bank["embedding"]
    assert start.norm(dim=1).numpy() == pytest.approx(1, abs=1e-5)
    method(two_views(), BATCH)
    (z0_BP, _), _ = outputs(method, two_views())
    assert method.bank["embedding"][:6].numpy() == pytest.approx(z0_BP, abs=1e-5)
    assert torch.equal(method.bank["embedding"][6:], start[6:])
    method(two_views(2), BATCH)
    (later, _), _ = outputs(method, two_views(2))
    expected = np.concatenate([later[2:], z0_BP[4:], later[:2]])
    assert method.bank["embedding"].numpy() == pytest.approx(expected, abs=1e-5)


def test_nnclrs_gradient_reaches_everything_through_the_predictions(make_nnclr):
    method = make_nnclr()
    method(two_views(), BATCH)["nnclr"].backward()
    assert all(p.grad.abs().sum() > 0 for p in method.parameters() if p.ndim > 1)
    nn.init.zeros_(method.predictor.layers[0].weight)
    method.zero_grad()
    method(two_views(), BATCH)["nnclr"].backward()
    # Cut off behind the predictor's first layer, nothing is left for the projector.
    assert all(p.grad.abs().max() < 1e-6 for p in method.projector.parameters())


def test_nnclrs_heads_are_the_papers(make_encoder):
    method = NNCLR(make_encoder())
    projector, predictor = list(method.projector.layers), list(method.predictor.layers)
    shapes = [m.weight.shape for m in [*projector, *predictor] if isinstance(m, nn.Linear)]
    assert shapes == [(2048, 16), (2048, 2048), (256, 2048), (4096, 256), (256, 4096)]
    names = "Linear BatchNorm1d ReLU Linear BatchNorm1d ReLU Linear BatchNorm1d"
    assert " ".join(type(m).__name__ for m in projector) == names
    assert projector[-1].weight is not None
    assert " ".join(type(m).__name__ for m in predictor) == "Linear BatchNorm1d ReLU Linear"
    assert method.bank["embedding"].shape == (65536, 256)


def test_nnclrs_loss_falls(make_nnclr):
    method = make_nnclr()
    start = copy.deepcopy(method.bank.state_dict())
    optimizer = torch.optim.SGD(method.parameters(), lr=0.02)
    losses = []
    for _ in range(10):
        method.bank.load_state_dict(start)  # the same neighbors to choose from at each step
        loss = method(two_views(), BATCH)["nnclr"]
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.1


def test_nnclr_in_bf16_gives_float32_losses_and_rows(make_nnclr):
    method = make_nnclr()
    exact = method(two_views(), BATCH)["nnclr"]
    method = make_nnclr()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = method(two_views(), BATCH)["nnclr"]
    assert loss.dtype == method.bank["embedding"].dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), abs=0.3)
    assert method.bank["embedding"].norm(dim=1).numpy() == pytest.approx(1, abs=1e-5)


def test_nnclr_resumes_bit_by_bit(make_nnclr):
    method, other = make_nnclr(), make_nnclr(seed=1)
    method(two_views(), BATCH)
    other.load_state_dict(method.state_dict())
    for seed in (2, 3):
        ahead, again = (m(two_views(seed), BATCH)["nnclr"] for m in (method, other))
        assert torch.equal(ahead, again)
    assert torch.equal(method.bank["embedding"], other.bank["embedding"])
