import pytest
import torch
from torch import nn

from ssdistill.train.gradients import SharedLayer


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5), nn.Linear(5, 2))


def test_the_deepest_weight_that_every_loss_reaches_is_taken(network):
    x_B3 = torch.rand(6, 3)
    hidden_B5 = network[2](network[1](network[0](x_B3)))
    losses = {"early": hidden_B5.square().mean(), "late": network[3](hidden_B5).square().mean()}
    layer = SharedLayer(network)
    found = layer.gradient_norms(losses)
    assert layer.name == "2.weight"
    for name, loss in losses.items():
        (gradient,) = torch.autograd.grad(loss, network[2].weight, retain_graph=True)
        assert torch.allclose(found[name], gradient.norm())
    sum(losses.values()).backward()  # the graph is still there
    assert network[0].weight.grad is not None


def test_measuring_leaves_no_gradient_behind(network):
    SharedLayer(network).gradient_norms({"a": network(torch.rand(2, 3)).mean()})
    assert all(p.grad is None for p in network.parameters())


def test_a_loss_that_reaches_no_weight_of_the_network_gives_no_norms(network):
    other = torch.ones(3, requires_grad=True)
    losses = {"a": network(torch.rand(2, 3)).mean(), "b": other.sum()}
    assert SharedLayer(network).gradient_norms(losses) == {}
