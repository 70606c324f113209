import copy

import pytest
import torch
from torch import nn

from ssdistill.compress.int8.equalize import equalize, read_chains
from ssdistill.models.backbones import EncoderSettings, build_encoder
from ssdistill.models.wrapped import Wrapped


def awake(model):
    """Batch norms that do something, and channels of very different size."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            size = module.running_mean.shape
            module.running_mean.copy_(torch.randn(size, generator=generator) * 0.3)
            module.running_var.copy_(torch.rand(size, generator=generator) + 0.3)
            module.weight.data.copy_(torch.rand(size, generator=generator) + 0.5)
            module.bias.data.copy_(torch.randn(size, generator=generator))
    return model.eval()


def encoder_of(name, **args):
    torch.manual_seed(0)
    return awake(build_encoder(EncoderSettings(name=name, args=args), 32))


class Chain(nn.Module):
    def __init__(self, activation=nn.ReLU):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.activation = activation()
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.last = nn.Conv2d(8, 6, 1)
        self.head = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 5))

    def forward(self, x_BCHW):
        x_BCHW = self.activation(self.deep(self.activation(self.first(x_BCHW))))
        return self.head(self.last(x_BCHW).mean((2, 3)))


def wrapped(net):
    return Wrapped(net.eval(), torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1)))


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "args", "pairs"),
    [
        ("resnet10t", {"layers": (1, 1, 0, 0), "channels": (8, 16, 16, 16), "stem_width": 8}, 2),
        ("mobilenetv3_small_050", {}, 14),
        ("test_vit", {"img_size": 32}, 0),
    ],
)
def test_an_equalized_encoder_computes_the_same(name, args, pairs):
    encoder = encoder_of(name, **args)
    before = copy.deepcopy(encoder.state_dict())
    found, names = equalize(encoder)
    x_BCHW = encoder.example(3)
    expected_BD = encoder(x_BCHW).embedding_BD
    difference = (found(x_BCHW).embedding_BD - expected_BD).abs().max()
    assert difference <= 1e-5 * max(1, expected_BD.abs().max())
    assert len(names) == pairs and bool(pairs) == any(
        not torch.equal(value, found.state_dict()[key]) for key, value in before.items()
    )
    assert all(torch.equal(value, encoder.state_dict()[key]) for key, value in before.items())


@torch.no_grad()
def test_ranges_of_a_pair_are_equal_afterwards_also_of_grouped_and_linear_layers():
    net = Chain()
    net.first.weight.mul_(torch.logspace(-2, 2, 8).view(-1, 1, 1, 1))
    net.head[0].weight.mul_(torch.logspace(-1, 1, 10).view(-1, 1))
    model = wrapped(net)
    found, pairs = equalize(model)
    assert pairs == [("first", "deep"), ("deep", "last"), ("head.0", "head.2")]
    out_C = found.net.first.weight.flatten(1).abs().amax(1)
    # Input channel i of the grouped layer is column i % 2 of the two outputs of group i // 2.
    in_C = found.net.deep.weight.view(4, 2, 2, 9).abs().amax((1, 3)).flatten()
    assert torch.allclose(out_C, in_C, rtol=1e-2)
    out_F = found.net.head[0].weight.abs().amax(1)
    assert torch.allclose(out_F, found.net.head[2].weight.abs().amax(0), rtol=1e-2)
    x_BCHW = model.example(4)
    assert torch.allclose(found(x_BCHW).embedding_BD, model(x_BCHW).embedding_BD, atol=1e-4)


@torch.no_grad()
def test_pairs_that_share_a_layer_are_equalized_until_nothing_changes():
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    for name, largest in (("0", 16.0), ("2", 1.0), ("4", 1.0)):
        net.get_submodule(name).weight.copy_(torch.diag(torch.tensor([1.0, largest])))
        net.get_submodule(name).bias.copy_(torch.tensor([3.0, 32.0]))
    model = Wrapped(net.eval(), torch.rand(2, 2))
    # The first channel is equal from the beginning; the scales of the second have a product of 16.
    for rounds, second in ((1, (4.0, 2.0, 2.0)), (20, (16 ** (1 / 3),) * 3)):
        found, pairs = equalize(model, rounds)
        assert pairs == [("0", "2"), ("2", "4")]
        layers = [found.net.get_submodule(name) for name in ("0", "2", "4")]
        for layer, largest in zip(layers, second, strict=True):
            expected = torch.diag(torch.tensor([1.0, largest]))
            assert torch.allclose(layer.weight, expected, rtol=2e-3)
        # The bias goes with the outputs, divided by all that they were divided by.
        biases = (32 * second[0] / 16, 32 * second[0] * second[1] / 16, 32.0)
        for layer, bias in zip(layers, biases, strict=True):
            assert torch.allclose(layer.bias, torch.tensor([3.0, bias]), rtol=3e-3)


@torch.no_grad()
def test_a_channel_that_nothing_reads_stays_as_it_is():
    net = Chain()
    # Input channel 2 of the grouped layer is the first of its second group.
    net.deep.weight[2:4, 0] = 0
    model = wrapped(net)
    found, _ = equalize(model)
    assert torch.equal(found.net.first.weight[2], net.first.weight[2])
    assert not torch.equal(found.net.first.weight[3], net.first.weight[3])
    x_BCHW = model.example(4)
    assert torch.allclose(found(x_BCHW).embedding_BD, model(x_BCHW).embedding_BD, atol=1e-5)


@torch.no_grad()
def test_a_dead_channel_stays_dead_and_finite():
    net = Chain()
    net.first.weight[2], net.first.bias[2] = 0, 0
    found, _ = equalize(wrapped(net))
    assert not found.net.first.weight[2].any()
    assert all(p.isfinite().all() for p in found.net.parameters())


@pytest.mark.parametrize("activation", [nn.Hardswish, nn.ReLU6, nn.GELU])
def test_activations_that_do_not_scale_separate_layers(activation):
    assert read_chains(wrapped(Chain(activation))).pairs == [("head.0", "head.2")]


def test_a_layer_that_is_read_twice_or_used_twice_is_left_alone():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
            self.c = nn.Conv2d(3, 3, 1)

        def forward(self, x_BCHW):
            y_BCHW = self.a(x_BCHW)
            return (self.b(self.c(self.c(y_BCHW))) + y_BCHW).mean((2, 3))

    assert read_chains(wrapped(Twice())).pairs == []
