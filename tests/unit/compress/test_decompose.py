import copy

import pytest
import torch
from torch import nn

from ssdistill.compress.factors.decompose import (
    decompose,
    decompose_after,
    largest_ranks,
    layer_cost,
    spectrum,
)
from ssdistill.compress.factors.moments import (
    Positions,
    Running,
    called_layers,
    joint_stats,
    output_stats,
    rows_of,
)
from ssdistill.errors import UserError
from ssdistill.models.wrapped import Wrapped

METHODS = ("data", "svd", "spatial", "tucker")
LAYERS = {
    "plain": nn.Conv2d(6, 10, 3, padding=1),
    "no bias": nn.Conv2d(6, 10, 3, padding=1, bias=False),
    "strided": nn.Conv2d(6, 10, 3, stride=(2, 1), padding=(1, 0)),
    "dilated": nn.Conv2d(6, 10, 3, padding=(2, 4), dilation=(2, 3)),
    "5 by 3": nn.Conv2d(6, 10, (5, 3), padding=(2, 1)),
    "column": nn.Conv2d(6, 10, (5, 1), stride=(2, 3), padding=(2, 0)),
    "pixel": nn.Conv2d(10, 6, 1, stride=2),
    "linear": nn.Linear(6, 10),
}


def layer_of(name, seed=0):
    layer = copy.deepcopy(LAYERS[name])
    generator = torch.Generator().manual_seed(seed)
    for parameter in layer.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    return layer.double()


def inputs_of(layer, count=32, seed=0):
    """Correlated channels with a mean far from zero, as after a ReLU."""
    generator = torch.Generator().manual_seed(seed)
    width = layer.weight.shape[1]
    shape = (7,) if isinstance(layer, nn.Linear) else (9, 12)
    mix = torch.randn(width, width, generator=generator, dtype=torch.float64)
    mix *= 0.5 ** torch.arange(width)[:, None]
    x = torch.randn(count, *shape, width, generator=generator, dtype=torch.float64) @ mix + 2
    return x if isinstance(layer, nn.Linear) else x.movedim(-1, 1)


def stats_of(layer, x):
    running = Running()
    with torch.no_grad():
        for batch in x.split(5):
            running.update(rows_of(layer, layer(batch)))
    return running.compute("layer")


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", LAYERS)
def test_at_full_rank_the_factors_equal_the_layer(name, method):
    layer = layer_of(name).float()
    x = inputs_of(layer).float()
    factors = decompose(layer, method, largest_ranks(layer, method), stats_of(layer, x))
    expected = layer(x)
    assert (factors(x) - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", LAYERS)
def test_svd_loses_exactly_the_tail_of_the_singular_values(name):
    layer = layer_of(name)
    values = torch.linalg.svdvals(layer.weight.detach().flatten(1))
    assert torch.allclose(spectrum(layer, "svd")[0], values.square())
    for rank in (1, 3, 5):
        error = (decompose(layer, "svd", rank).weight - layer.weight).norm()
        assert error.item() == pytest.approx(values[rank:].square().sum().sqrt().item())


@pytest.mark.parametrize("name", ["plain", "strided", "5 by 3"])
def test_spatial_loses_exactly_the_tail_of_its_matrix(name):
    layer = layer_of(name)
    (energies,) = spectrum(layer, "spatial")
    assert len(energies) == largest_ranks(layer, "spatial")[0]
    for rank in (1, 4, 9):
        error = (decompose(layer, "spatial", rank).weight - layer.weight).square().sum()
        assert error.item() == pytest.approx(energies[rank:].sum().item())


@torch.no_grad()
@pytest.mark.parametrize("name", LAYERS)
def test_data_loses_exactly_the_tail_of_the_output_variances(name):
    layer = layer_of(name)
    x = inputs_of(layer)
    stats = stats_of(layer, x)
    rows = rows_of(layer, layer(x))
    values = torch.linalg.eigvalsh((rows - rows.mean(0)).T @ (rows - rows.mean(0)) / len(rows))
    for rank in (1, 2, 4):
        factors = decompose(layer, "data", rank, stats)
        error = rows_of(factors.expand, factors(x)) - rows
        tail = values.flip(0)[rank:].sum().item()
        assert error.square().sum(1).mean().item() == pytest.approx(tail, rel=1e-6)
        assert error.mean(0).abs().max() < 1e-9
        assert spectrum(layer, "data", stats)[0][rank:].sum().item() == pytest.approx(tail)


@torch.no_grad()
@pytest.mark.parametrize("method", ["svd", "spatial", "tucker"])
def test_data_beats_looking_at_the_weights_alone_on_new_correlated_inputs(method):
    layer = layer_of("plain")
    x, new = inputs_of(layer).split(16)
    stats = stats_of(layer, x)
    error = {}
    for m, rank in (("data", 3), (method, (3, 6) if method == "tucker" else 3)):
        error[m] = (decompose(layer, m, rank, stats)(new) - layer(new)).square().mean()
    assert error["data"] < 0.7 * error[method]


def test_tucker_has_orthonormal_ends_and_refines_what_hosvd_found():
    layer = layer_of("plain")
    factors = decompose(layer, "tucker", (3, 5))
    assert factors.rank == (3, 5)
    first, last = factors.reduce.weight[..., 0, 0], factors.expand.weight[..., 0, 0]
    assert torch.allclose(first @ first.T, torch.eye(3).double())
    assert torch.allclose(last.T @ last, torch.eye(5).double())
    weight = layer.weight.detach()
    ins = torch.linalg.svd(weight.transpose(0, 1).flatten(1))[0][:, :3]
    outs = torch.linalg.svd(weight.flatten(1))[0][:, :5]
    hosvd = torch.einsum("oihw,op,iq->pqhw", weight, outs @ outs.T, ins @ ins.T)
    error, before = (factors.weight - weight).norm(), (hosvd - weight).norm()
    assert error < before
    tails = [e[r:].sum() for e, r in zip(spectrum(layer, "tucker"), (3, 5), strict=True)]
    assert error.square() < sum(tails)


@torch.no_grad()
def test_a_layer_makes_up_for_what_the_one_before_it_lost():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(6, 16, 3), nn.ReLU(), nn.Conv2d(16, 12, 3)).double()
    x, new = inputs_of(net[0], 192).split(96)
    whole = Wrapped(net, x, embed=lambda n, x: n(x).mean((2, 3)))
    behind = copy.deepcopy(whole)
    behind.net[0] = decompose(net[0], "data", 2, stats_of(net[0], x))
    kept = copy.deepcopy(behind.net[2].state_dict())
    stats = output_stats(whole, x, ["2"])["2"]
    joint = joint_stats((whole, behind), x, "2")
    assert all(torch.equal(kept[key], value) for key, value in behind.net[2].state_dict().items())
    error = []
    for factors in (decompose(net[2], "data", 6, stats), decompose_after(net[2], 6, joint)):
        behind.net[2] = factors
        error.append((behind.net(new) - net(new)).square().mean())
    assert error[1] < 0.9 * error[0]


@torch.no_grad()
def test_without_a_loss_before_it_nothing_is_made_up_for():
    layer = layer_of("plain")
    x = inputs_of(layer)
    model = Wrapped(nn.Sequential(layer), x, embed=lambda n, x: n(x).mean((2, 3)))
    joint = joint_stats((model, copy.deepcopy(model)), x, "0")
    expected = decompose(layer, "data", 4, stats_of(layer, x))
    assert torch.allclose(decompose_after(layer, 4, joint)(x), expected(x))


def test_statistics_do_not_depend_on_the_batches_and_leave_the_model_as_it_was():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 36, 4))
    net, x = net.double(), torch.randn(10, 3, 8, 8).double() + 100
    model = Wrapped(net, x).train()
    before = copy.deepcopy(net.state_dict())
    one, many = (output_stats(model, x, ["0", "3"], batch_size=size) for size in (10, 3))
    for name, positions in (("0", 36), ("3", 1)):
        assert one[name].count == many[name].count == 10 * positions
        assert one[name].mean_O.dtype == torch.float64
        assert torch.allclose(one[name].covariance_OO, many[name].covariance_OO, rtol=1e-9)
    rows = net[0](x).detach().movedim(1, -1).reshape(-1, 8)
    assert torch.allclose(one["0"].mean_O, rows.mean(0))
    expected = torch.cov(rows.T, correction=0)
    assert torch.allclose(one["0"].covariance_OO, expected)
    assert model.training and not net[0]._forward_hooks
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


def test_costs_are_those_of_the_factors():
    for name in LAYERS:
        layer = layer_of(name).float()
        x = inputs_of(layer, 2).float()
        model = Wrapped(nn.Sequential(layer), x, embed=lambda n, x: n(x).flatten(1)[:, :4])
        positions = called_layers(model)["0"]
        for method in METHODS:
            rank = (2, 3) if len(largest_ranks(layer, method)) == 2 else 3
            factors = decompose(layer, method, rank, stats_of(layer, x))
            cost = layer_cost(layer, rank, method, positions)
            assert cost.parameters == sum(p.numel() for p in factors.parameters())
            assert cost.macs == macs_of(factors, x)
        whole = layer_cost(layer, None, "svd", positions)
        assert whole.parameters == sum(p.numel() for p in layer.parameters())
        assert whole.macs == macs_of(layer, x)


def macs_of(module, x):
    """Multiply-accumulates for one input, counted where they happen."""
    total = 0

    def count(layer, _, output):
        nonlocal total
        total += output.numel() * layer.weight[0].numel() / len(x)

    leaves = [m for m in module.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    hooks = [leaf.register_forward_hook(count) for leaf in leaves]
    module(x)
    for hook in hooks:
        hook.remove()
    return total


def test_only_plain_layers_that_are_called_are_candidates():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.late, self.early = nn.Linear(8, 4), nn.Linear(8, 8)
            self.depthwise = nn.Conv1d(8, 8, 1, groups=8)
            self.read, self.idle = nn.Linear(8, 8), nn.Linear(8, 8)
            self.one, self.other = nn.Linear(8, 8), nn.Linear(8, 8)
            self.other.weight = self.one.weight

        def forward(self, x):
            x = self.early(self.early(x)) @ self.read.weight
            return self.late(self.other(self.one(x))).mean(1)

    model = Wrapped(Net(), torch.randn(2, 5, 8))
    assert called_layers(model) == {"early": Positions(10, 10, 10), "late": Positions(5, 5, 5)}
    assert list(called_layers(model)) == ["early", "late"]


@pytest.mark.parametrize(
    ("method", "rank", "message"),
    [
        ("svd", 0, "svd: rank must be between 1 and 10, got 0"),
        ("spatial", 19, "spatial: rank must be between 1 and 18, got 19"),
        ("tucker", (7, 3), r"tucker: rank must be between 1 and 6 and 10, got \(7, 3\)"),
        ("data", 3, "method=data requires statistics of the layer's outputs"),
    ],
)
def test_what_cannot_be_is_refused(method, rank, message):
    with pytest.raises(UserError, match=message):
        decompose(layer_of("plain"), method, rank)


def test_outputs_that_are_not_finite_and_layers_that_are_not_called_are_named():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model = Wrapped(net, torch.randn(2, 4), embed=lambda n, x: n[0](x), name="half")
    with pytest.raises(UserError, match="half: layer '1' is never called in a forward pass"):
        output_stats(model, torch.randn(4, 4), ["1"])
    with pytest.raises(UserError, match="half: layer '0' outputs NaN or infinity"):
        output_stats(model, torch.full((4, 4), torch.inf), ["0"])
