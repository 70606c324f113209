from itertools import pairwise

import pytest
import torch
from torch import nn

from ssdistill.compress.codes.fake_quant import OnGrid, on_grid, quantize_weight, weights_of


def weight_of(*shape, seed=0):
    torch.manual_seed(seed)
    channels = torch.logspace(-2, 1, shape[0]).view(-1, *[1] * (len(shape) - 1))
    return torch.randn(shape) * channels


def error(weight, bits, **options):
    return (quantize_weight(weight, bits, **options)[0] - weight).square().flatten(1).sum(1)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 5, 8])
def test_no_weight_is_further_than_half_a_step_from_an_unclipped_grid(bits, symmetric):
    weight = weight_of(6, 4, 3, 3)
    found, coded = quantize_weight(weight, bits, symmetric=symmetric, clip="max")
    off = (found - weight).abs().flatten(1).amax(1)
    assert (off <= 0.57 * coded.scale.float()).all()  # scales and zeros have 11 bits
    assert (off > 0.3 * coded.scale.float()).all()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("shape", [(6, 40), (6, 4, 3, 3), (6, 5, 3)])
def test_the_code_gives_exactly_the_weight_and_uses_no_more_values(shape, symmetric):
    weight = weight_of(*shape)
    before = weight.clone()
    found, coded = quantize_weight(weight, 3, symmetric=symmetric)
    assert torch.equal(coded.decode(), found) and torch.equal(weight, before)
    assert all(len(row.unique()) <= (7 if symmetric else 8) for row in found.flatten(1))
    assert coded.bits == 3 and coded.integers.shape == weight.shape
    assert int(coded.integers.min()) >= coded.low
    assert int(coded.integers.max()) < coded.low + 8


def test_a_symmetric_grid_has_the_opposite_of_each_of_its_values():
    weight = weight_of(4, 50)
    found, coded = quantize_weight(weight, 4)
    opposite, _ = quantize_weight(-weight, 4)
    assert coded.zero is None and torch.equal(opposite, -found)
    assert coded.integers.abs().max() == 7


def test_eight_bits_are_almost_exact_and_every_bit_helps():
    weight = weight_of(8, 16, 3, 3)
    norms = weight.square().flatten(1).sum(1)
    assert (error(weight, 8) < 2e-4 * norms).all()
    for symmetric in (True, False):
        errors = [error(weight, bits, symmetric=symmetric).sum() for bits in range(2, 9)]
        assert all(b < a for a, b in pairwise(errors))


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_clipping_never_costs_and_gains_where_weights_have_tails(bits, symmetric, per_channel):
    weight = weight_of(6, 500)
    options = {"symmetric": symmetric, "per_channel": per_channel}
    clipped, whole = (error(weight, bits, clip=c, **options) for c in ("mse", "max"))
    if not per_channel:
        clipped, whole = clipped.sum(), whole.sum()
    assert (clipped <= whole * (1 + 1e-6)).all()
    if bits < 8:
        assert clipped.sum() < 0.9 * whole.sum()


def test_two_bits_of_a_normal_weight_come_close_to_the_best_even_spacing():
    weight = torch.randn(4, 4000, generator=torch.Generator().manual_seed(0))
    share = error(weight, 2, symmetric=False).sum() / weight.square().sum()
    assert 0.115 < share < 0.122  # Max, IRE 1960: 0.1188 for four evenly spaced values


def test_a_scale_for_every_channel_is_better_than_one_for_all():
    weight = weight_of(6, 100)
    assert error(weight, 4)[0] < 0.1 * error(weight, 4, per_channel=False)[0]


@pytest.mark.parametrize("symmetric", [True, False])
def test_zeros_stay_zeros_and_an_empty_channel_is_no_trouble(symmetric):
    weight = weight_of(5, 60)
    weight[:, ::3] = 0
    weight[2] = 0
    for bits in (2, 4):
        found, _ = quantize_weight(weight, bits, symmetric=symmetric)
        assert not found[:, ::3].any() and not found[2].any() and found.isfinite().all()


def test_tiny_weights_keep_their_scale():
    weight = weight_of(4, 30) * 1e-9
    assert (error(weight, 8) < 2e-4 * weight.square().flatten(1).sum(1)).all()


def test_layers_are_named_by_the_keys_of_their_weights_and_tied_ones_once():
    net = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 5))
    net[3].weight = net[0].weight
    assert list(weights_of(net)) == ["0.weight", "1.weight"]
    assert list(weights_of(nn.Linear(2, 2))) == ["weight"]


def test_gradients_pass_straight_through_but_not_where_the_weight_is_clipped():
    weight = torch.tensor([[-0.9, -0.2, 0.1, 0.4, 7.0]])
    _, coded = quantize_weight(weight[:, :4], 3, clip="max")
    held = OnGrid(coded, weight)
    leaf = weight.clone().requires_grad_(True)
    held(leaf).sum().backward()
    assert leaf.grad.tolist() == [[1, 1, 1, 1, 0]]
    assert held.log_scale_C.grad.abs().sum() > 0


def test_training_ends_exactly_on_the_grid_and_leaves_plain_weights():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    keys, x_BI, y_BO = set(net.state_dict()), torch.randn(64, 6), torch.randn(64, 3)
    net[0].weight.data[:, 0] = 0
    coded = {
        k: quantize_weight(m.weight, 3, symmetric=False)[1] for k, m in weights_of(net).items()
    }
    start = {key: code.decode() for key, code in coded.items()}
    with on_grid(net, coded) as found:
        assert torch.allclose(net[0].weight, start["0.weight"], atol=1e-6)
        optimizer = torch.optim.Adam(net.parameters(), 1e-2)
        losses = []
        for _ in range(60):
            loss = (net(x_BI) - y_BO).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        inside = net(x_BI).detach()
    assert losses[-1] < 0.8 * losses[0]
    assert set(net.state_dict()) == keys and type(net[0]) is nn.Linear
    for key, layer in weights_of(net).items():
        assert torch.equal(layer.weight, found[key].decode())
        assert not torch.equal(layer.weight, start[key])
        assert not torch.equal(found[key].scale, coded[key].scale)
    assert not net[0].weight[:, 0].any()
    assert torch.allclose(net(x_BI), inside, atol=0.02)
