import copy
import math

import numpy as np
import pytest
import torch
from lightly.utils.lars import LARS as LightlyLARS
from torch import nn

from ssdistill.train.lars import LARS

STEPS = 6


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3))


def gradients_of(net, step):
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(p.shape, generator=generator) for p in net.parameters()]


def train(net, optimizer, steps=range(STEPS), rate=lambda step: 0.3 / (1 + step)):
    for step in steps:
        for parameter, gradient in zip(net.parameters(), gradients_of(net, step), strict=True):
            parameter.grad = gradient
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        optimizer.step()


def by_hand(net, *, momentum, decay, eta, clip, nesterov, rate=lambda step: 0.3 / (1 + step)):
    """One parameter after the other, in float64 numpy, from the formula."""
    weights = [p.detach().double().numpy().copy() for p in net.parameters()]
    buffers = [np.zeros_like(w) for w in weights]
    for step in range(STEPS):
        for w, v, g in zip(weights, buffers, gradients_of(net, step), strict=True):
            push = g.double().numpy()
            if w.ndim > 1:
                size, slope = math.sqrt((w**2).sum()), math.sqrt((push**2).sum())
                local = eta * size / (slope + decay * size + 1e-8) if size else 1.0
                if clip and size:
                    local = min(local / rate(step), 1.0)
                push = local * (push + decay * w)
            v[:] = momentum * v + push
            w -= rate(step) * (push + momentum * v if nesterov else v)
    return weights


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.05])
@pytest.mark.parametrize("eta, clip", [(0.001, False), (0.02, True), (2.0, True)])
def test_several_steps_are_those_of_the_formula(eta, clip, decay, nesterov):
    net = small_net()
    expected = by_hand(net, momentum=0.9, decay=decay, eta=eta, clip=clip, nesterov=nesterov)
    optimizer = LARS(
        net.parameters(),
        lr=0.1,
        weight_decay=decay,
        trust_coefficient=eta,
        clip_lr=clip,
        nesterov=nesterov,
    )
    train(net, optimizer)
    for parameter, value in zip(net.parameters(), expected, strict=True):
        np.testing.assert_allclose(parameter.detach().numpy(), value, rtol=2e-5, atol=2e-6)


def test_it_agrees_with_lightly_where_that_scales_at_all():
    ours, theirs = small_net(), small_net()
    matrices = [p for p in theirs.parameters() if p.ndim > 1]
    vectors = [p for p in theirs.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.02}, {"params": vectors, "weight_decay": 0.0}]
    train(theirs, LightlyLARS(groups, lr=0.1, momentum=0.9, trust_coefficient=0.01))
    train(ours, LARS(ours.parameters(), lr=0.1, weight_decay=0.02, trust_coefficient=0.01))
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-7)


def test_without_weight_decay_weights_are_still_scaled():
    layer = nn.Linear(4, 4, bias=False)
    moved = []
    for scale in (1.0, 10.0):
        nn.init.constant_(layer.weight, scale)
        layer.weight.grad = torch.ones(4, 4)
        LARS(layer.parameters(), lr=1.0, momentum=0.0).step()
        moved.append((layer.weight - scale).norm().item())
    assert moved == pytest.approx([1e-3 * 4, 1e-3 * 40], rel=1e-3)


def test_vectors_move_as_under_sgd_without_decay():
    layer = nn.Linear(3, 2)
    plain = copy.deepcopy(layer.bias)
    optimizer = LARS(layer.parameters(), lr=0.1, weight_decay=0.5)
    reference = torch.optim.SGD([plain], lr=0.1, momentum=0.9)
    for step in range(STEPS):
        layer.weight.grad = torch.ones(2, 3)
        layer.bias.grad = plain.grad = torch.tensor([1.0, -2.0]) * step
        optimizer.step()
        reference.step()
    torch.testing.assert_close(layer.bias, plain, rtol=0, atol=0)


@pytest.mark.parametrize("lr, share", [(0.01, 1.0), (10.0, 0.5 / 10)])
def test_a_clipped_rate_is_the_smaller_of_local_and_global(lr, share):
    weight = nn.Parameter(torch.full((2, 2), 2.0))
    weight.grad = torch.ones(2, 2)
    # Norms 4 and 2: the local rate is 0.25 * 4 / 2 = 0.5.
    LARS([weight], lr=lr, momentum=0.0, trust_coefficient=0.25, clip_lr=True).step()
    torch.testing.assert_close(weight.detach(), torch.full((2, 2), 2.0 - lr * share))


def test_a_clipped_rate_survives_a_warm_up_from_zero():
    weight = nn.Parameter(torch.ones(2, 2))
    weight.grad = torch.ones(2, 2)
    LARS([weight], lr=0.0, clip_lr=True).step()
    assert torch.equal(weight.detach(), torch.ones(2, 2))


def test_without_momentum_no_memory_is_taken():
    net = small_net()
    optimizer = LARS(net.parameters(), lr=0.1, momentum=0)
    train(net, optimizer, steps=range(1))
    assert not optimizer.state


def test_parameters_without_gradient_stay():
    net = small_net()
    before = net[0].weight.detach().clone()
    optimizer = LARS(net.parameters(), lr=0.5, weight_decay=0.1)
    net[3].weight.grad = torch.ones(3, 4)
    optimizer.step()
    assert torch.equal(net[0].weight, before)
    assert set(optimizer.state) == {net[3].weight}


def test_a_zero_gradient_gives_no_push_and_zero_weights_learn():
    still, empty = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.zeros(2, 2))
    still.grad, empty.grad = torch.zeros(2, 2), torch.ones(2, 2)
    LARS([still, empty], lr=0.1, weight_decay=0.5, momentum=0.0).step()
    assert torch.equal(still.detach(), torch.ones(2, 2))
    torch.testing.assert_close(empty.detach(), torch.full((2, 2), -0.1))


def test_gradients_are_left_as_they_were():
    weight = nn.Parameter(torch.ones(2, 2))
    weight.grad = torch.ones(2, 2)
    LARS([weight], lr=0.1, weight_decay=0.5, nesterov=True).step()
    assert torch.equal(weight.grad, torch.ones(2, 2))


def test_a_loaded_state_goes_on_bit_for_bit():
    net = small_net()
    optimizer = LARS(net.parameters(), lr=0.1, weight_decay=0.02, clip_lr=True)
    train(net, optimizer, range(3))
    resumed = copy.deepcopy(net)
    fresh = LARS(resumed.parameters(), lr=7.0)
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(net, optimizer, range(3, STEPS))
    train(resumed, fresh, range(3, STEPS))
    for mine, other in zip(net.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_a_closure_is_called_with_gradients_on():
    weight = nn.Parameter(torch.ones(2, 2))

    def closure():
        loss = (weight**2).sum()
        loss.backward()
        return loss

    assert LARS([weight], lr=0.1).step(closure) == 4.0
    assert weight.grad is not None
