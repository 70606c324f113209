import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ssdistill.data.batch import Batch
from ssdistill.pretrain import swav
from ssdistill.pretrain.swav import SwAV, SwAVProjector

SMALL = SwAVProjector(hidden_dim=16, output_dim=8)
PROTOTYPES = 12


def make_views(count=6, seed=1, small=0):
    generator = torch.Generator().manual_seed(seed)
    full = [torch.rand(count, 3, 16, 16, generator=generator) for _ in range(2)]
    return full + [torch.rand(count, 3, 8, 8, generator=generator) for _ in range(small)]


def make_batch(count=6, step=5, num_steps=10):
    images = torch.zeros(count, 16, 16, 3, dtype=torch.uint8)
    return Batch(images, torch.arange(count), 0, step, num_steps)


def make_z(views=2, count=6, seed=3):
    """Unit vectors (V, B, P)."""
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(views, count, 8, generator=generator), dim=-1)


@pytest.fixture
def make_swav(make_encoder):
    def make(seed=0, **settings):
        method = SwAV(
            make_encoder(seed), num_prototypes=PROTOTYPES, projector=SMALL, **settings
        ).train()
        for module in method.encoder.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.ones_(module.weight)  # timm starts residual branches at zero
        return method

    return make


def bypass(method):
    """Views are taken for projections, so that a forward sees known ones."""
    method.embed, method.projector = lambda views: views, nn.Identity()
    return method


def assign(cosine_NK, epsilon=0.05, iterations=3):
    """Sinkhorn-Knopp as in the paper's appendix: on the matrix itself, prototypes by samples."""
    q = np.exp(np.asarray(cosine_NK, dtype=np.float64) / epsilon).T
    q /= q.sum()
    prototypes, samples = q.shape
    for _ in range(iterations):
        q /= q.sum(1, keepdims=True) * prototypes
        q /= q.sum(0, keepdims=True) * samples
    return (q * samples).T


def cross_entropy(code, cosine, temperature=0.1):
    logits = np.asarray(cosine, dtype=np.float64) / temperature
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return -(code * log_p).sum(1).mean()


@pytest.mark.parametrize("views", [2, 5])
def test_swav_is_the_swapped_prediction_of_eq_6(make_swav, views):
    method, z = bypass(make_swav(epsilon=0.07, temperature=0.2)), make_z(views)
    cosine = (z @ method.prototypes.weight.T).detach().numpy()
    expected = 0
    for i in (0, 1):
        code = assign(cosine[i], epsilon=0.07)
        others = [cross_entropy(code, cosine[v], 0.2) for v in range(views) if v != i]
        expected += np.mean(others) / 2
    loss = method(list(z), make_batch())["swav"]
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_swav_scales_projections_to_unit_length(make_swav):
    method, z = bypass(make_swav()), make_z()
    loss, scaled = (method(list(k * z), make_batch())["swav"] for k in (1, 7))
    assert loss.item() == pytest.approx(scaled.item(), rel=1e-5)


def test_the_codes_of_swav_use_all_prototypes_equally_given_time(make_swav):
    method, z = make_swav(sinkhorn_iterations=200, epsilon=0.5), make_z(count=30)
    codes = method.codes(z, z @ method.prototypes.weight.T, make_batch())
    assert codes.shape == (2, 30, PROTOTYPES) and not codes.requires_grad
    assert torch.allclose(codes.sum(1), torch.full((2, PROTOTYPES), 30 / PROTOTYPES), atol=1e-3)
    assert torch.allclose(codes.sum(2), torch.ones(2, 30), atol=1e-5)


def test_no_gradient_passes_the_codes_of_swav(make_swav):
    """It is that of the cross-entropy with codes that are constants."""
    method = bypass(make_swav())
    z = make_z().requires_grad_()
    method(list(z), make_batch())["swav"].backward()
    ours, ours_prototypes = z.grad.clone(), method.prototypes.weight.grad.clone()
    constant = method.codes(z.detach(), (z @ method.prototypes.weight.T).detach(), make_batch())
    z.grad, method.prototypes.weight.grad = None, None
    cosine = F.normalize(z, dim=-1) @ method.prototypes.weight.T
    log_p = (cosine / 0.1).log_softmax(-1)
    (-(constant * log_p.flip(0)).sum(-1).mean()).backward()
    assert torch.allclose(ours, z.grad, atol=1e-6)
    assert torch.allclose(ours_prototypes, method.prototypes.weight.grad, atol=1e-6)


def test_small_views_of_swav_predict_and_are_not_assigned(make_swav):
    method = bypass(make_swav())
    z = make_z(4).requires_grad_()
    seen = []
    score = method.swapped_prediction
    method.swapped_prediction = lambda cosine, codes: seen.append(codes) or score(cosine, codes)
    method(list(z), make_batch())["swav"].backward()
    assert len(seen[0]) == 2
    assert all(gradient.abs().sum() > 0 for gradient in z.grad)


def test_swav_takes_views_of_two_sizes_in_one_pass_per_size(make_swav):
    method = make_swav()
    sizes = []
    method.encoder.register_forward_hook(lambda _, views, out: sizes.append(views[0].shape))
    heads = []
    method.projector.register_forward_hook(lambda _, z, out: heads.append(len(z[0])))
    loss = method(make_views(small=3), make_batch())["swav"]
    assert torch.isfinite(loss)
    assert sizes == [(12, 3, 16, 16), (18, 3, 8, 8)] and heads == [30]
    assert len(method.last_embeddings) == 5


def test_swavs_prototypes_have_unit_length_before_and_after_a_step(make_swav):
    method = make_swav()
    ones = torch.ones(PROTOTYPES)
    assert torch.allclose(method.prototypes.weight.norm(dim=1), ones)
    optimizer = torch.optim.SGD(method.parameters(), lr=1.0)
    method(make_views(), make_batch())["swav"].backward()
    optimizer.step()
    moved = method.prototypes.weight.detach().clone()
    assert not torch.allclose(moved.norm(dim=1), ones, atol=1e-3)
    method.after_step(0, 10)
    assert torch.allclose(method.prototypes.weight, F.normalize(moved, dim=1))


@pytest.mark.parametrize(("step", "frozen"), [(0, True), (2, True), (3, False), (9, False)])
def test_swavs_prototypes_learn_only_after_their_share_of_the_training(make_swav, step, frozen):
    method = make_swav(freeze_prototypes=0.3)
    method(make_views(), make_batch(step=step))["swav"].backward()
    assert (method.prototypes.weight.grad is None) == frozen
    assert all(p.grad.abs().sum() > 0 for p in method.projector.parameters() if p.ndim > 1)


def test_the_gradient_reaches_every_parameter_of_swav(make_swav):
    method = make_swav()
    method(make_views(small=1), make_batch())["swav"].backward()
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None, name
        if parameter.ndim > 1:
            assert parameter.grad.abs().sum() > 0, name


def test_a_full_queue_takes_part_in_the_codes_of_swav(make_swav):
    """Each full-size view has its own, of earlier batches, scored before the batch goes in."""
    method = bypass(make_swav(queue=12, queue_start=0.3))
    history = [make_z(seed=seed) for seed in range(4)]
    for step, z in enumerate(history[:3]):
        method(list(z), make_batch(step=step))
    expected = []
    for i in (0, 1):
        rows = torch.cat([history[3][i], history[1][i], history[2][i]])
        cosine = (rows @ method.prototypes.weight.T).detach().numpy()
        expected.append(assign(cosine)[:6])
    z = history[3]
    cosine = (z @ method.prototypes.weight.T).detach()
    codes = method.codes(z, cosine, make_batch(step=3))
    assert np.allclose(codes.numpy(), np.stack(expected), atol=1e-5)
    alone = np.stack([assign(cosine[i].numpy()) for i in (0, 1)])
    assert not np.allclose(codes.numpy(), alone, atol=1e-3)


@pytest.mark.parametrize(("pushes", "step"), [(3, 2), (1, 9), (0, 9)])
def test_the_queue_of_swav_waits_until_it_is_time_and_full(make_swav, pushes, step):
    method = bypass(make_swav(queue=12, queue_start=0.3))
    for number in range(pushes):
        method(list(make_z(seed=number)), make_batch(step=0))
    z = make_z(seed=8)
    cosine = (z @ method.prototypes.weight.T).detach()
    codes = method.codes(z, cosine, make_batch(step=step)).numpy()
    assert np.allclose(codes, np.stack([assign(cosine[i].numpy()) for i in (0, 1)]), atol=1e-5)


def test_the_queue_of_swav_holds_projections_of_training_alone(make_swav):
    method, z = bypass(make_swav(queue=12)), make_z()
    method(list(3 * z), make_batch())
    assert torch.allclose(method.queue["first"][:6], z[0])
    assert torch.allclose(method.queue["second"][:6], z[1])
    method.eval()(list(make_z(seed=1)), make_batch())
    assert method.queue.pushed == 6


def test_processes_share_the_rows_of_swavs_queue_between_them(make_swav, monkeypatch):
    method = bypass(make_swav(queue=12, queue_start=0.0))
    for seed in (0, 1):
        method(list(make_z(seed=seed)), make_batch())
    monkeypatch.setattr(swav, "world_size", lambda: 3)
    parts = []
    for number in range(3):
        monkeypatch.setattr(swav, "rank", lambda number=number: number)
        parts += method._queued(1, make_batch())
    assert [len(part) for part in parts] == [4, 4, 4]
    whole = method.queue["second"] @ method.prototypes.weight.T
    found = torch.cat(parts).sum(1).sort().values
    assert torch.allclose(found, whole.sum(1).sort().values)


def test_the_loss_of_swav_falls(make_swav):
    method = make_swav()
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1)
    losses = []
    for step in range(12):
        loss = method(make_views(), make_batch())["swav"]
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(step, 12)
    assert losses[-1] < 0.9 * losses[0]


def test_bf16_does_not_round_the_cosines_of_swav(make_swav):
    method, z = make_swav(queue=6, queue_start=0.0), make_z(3)
    other = bypass(copy.deepcopy(method))
    exact = [other(list(z), make_batch())["swav"].item() for _ in range(2)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert method.projector(torch.zeros(2, 16)).dtype == torch.bfloat16
        bypass(method)
        rough = [method(list(z), make_batch())["swav"] for _ in range(2)]
    assert [loss.item() for loss in rough] == exact
    assert all(loss.dtype == torch.float32 for loss in rough)


def test_swav_resumes_bit_for_bit(make_swav):
    method = make_swav(queue=6, queue_start=0.0)
    method(make_views(), make_batch())
    other = make_swav(seed=1, queue=6, queue_start=0.0)
    other.load_state_dict(copy.deepcopy(method.state_dict()))
    views = make_views(seed=5)
    for _ in range(2):
        first, second = (m(views, make_batch())["swav"] for m in (method, other))
        assert torch.equal(first, second)


def test_swav_is_as_wide_as_published_unless_told_otherwise(make_encoder):
    method = SwAV(make_encoder())
    assert method.prototypes.weight.shape == (3000, 128)
    kinds = [type(layer) for layer in method.projector.layers]
    assert kinds == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    assert method.projector.layers[0].out_features == 2048
    assert method.queue is None
