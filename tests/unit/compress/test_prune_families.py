import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from ssdistill.compress import Context
from ssdistill.compress.prune import Prune
from ssdistill.compress.pruning.graph import find_groups, masked, remove, survey
from ssdistill.models.backbones import EncoderSettings, build_encoder
from ssdistill.models.structure import fit_structure
from ssdistill.models.wrapped import Wrapped

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 4}
# Without what makes fresh residual branches count for nothing.
CONVNEXT = {"depths": (1, 1, 2, 1), "dims": (16, 24, 32, 48), "ls_init_value": 1.0}
RESNET = {"layers": (1, 2, 1, 0), "channels": (16, 32, 64, 64), "zero_init_last": False}
FAMILIES = {
    "resnet": ("resnet10t", RESNET),
    "vgg": ("vgg11_bn", {"cfg": (16, "M", 32, 32, "M", 48)}),
    "mobilenetv3": ("mobilenetv3_small_050", {}),
    "efficientnet": ("test_efficientnet", {}),
    "convnext": ("convnext_atto", CONVNEXT),
    "vit": ("vit_tiny_patch16_224", VIT),
}


def family(name):
    torch.manual_seed(0)
    architecture, args = FAMILIES[name]
    if name == "vgg":
        return Wrapped(SmallVgg(args["cfg"]).eval(), torch.rand(2, 3, 32, 32), name="vgg").eval()
    return build_encoder(EncoderSettings(name=architecture, args=args), 32).eval()


class SmallVgg(nn.Module):
    def __init__(self, widths):
        super().__init__()
        layers, width = [], 3
        for item in widths:
            if item == "M":
                layers.append(nn.MaxPool2d(2))
                continue
            layers += [nn.Conv2d(width, item, 3, padding=1), nn.BatchNorm2d(item), nn.ReLU()]
            width = item
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Linear(width * 64, 64), nn.ReLU(), nn.Linear(64, 32))

    def forward(self, x_BCHW):
        return self.head(self.features(x_BCHW).flatten(1))


def prune(model, **settings):
    context = Context(images=lambda n, seed: torch.zeros(0), folder=Path())
    return Prune(**settings).apply(model, context), context.record


def every_other_unit(groups):
    return [torch.arange(0, len(group.score_C), 2) for group in groups]


@torch.no_grad()
@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_gets_smaller_and_still_runs(name, ratio):
    model = family(name)
    pruned, record = prune(model, ratio=ratio, round_to=4)
    x_BCHW = torch.rand(3, 3, 32, 32)
    embedding_BD = pruned(x_BCHW).embedding_BD
    assert embedding_BD.shape == (3, model.embed_dim) and embedding_BD.isfinite().all()
    assert torch.equal(copy.deepcopy(pruned)(x_BCHW).embedding_BD, embedding_BD)
    dense, state = model.net.state_dict(), pruned.net.state_dict()
    assert list(state) == list(dense)
    assert all(v.numel() <= dense[k].numel() for k, v in state.items())
    assert record["parameters_after"] < record["parameters_before"]
    assert record["macs_after"] < record["macs_before"]
    assert pruned.train()(x_BCHW).embedding_BD.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("scope", ["inner", "all"])
@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_removed_is_what_is_masked(name, scope):
    model = family(name)
    groups = [group for group in find_groups(model, scope) if group.exact]
    x_BCHW = torch.rand(3, 3, 32, 32)
    silent, pruned = (
        change(model, groups, every_other_unit(groups)) for change in (masked, remove)
    )
    expected_BD, found_BD = silent(x_BCHW).embedding_BD, pruned(x_BCHW).embedding_BD
    assert torch.allclose(expected_BD, found_BD, rtol=1e-3, atol=1e-5)
    assert not torch.allclose(model(x_BCHW).embedding_BD, found_BD, rtol=1e-2, atol=1e-3)
    assert all(
        silent.net.get_parameter(n).shape == p.shape for n, p in model.net.named_parameters()
    )


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_a_pruned_network_comes_back_from_its_tensors(name):
    pruned, _ = prune(family(name), ratio=0.5, scope="all", round_to=4)
    x_BCHW = torch.rand(2, 3, 32, 32)
    expected_BD = pruned(x_BCHW).embedding_BD
    net = fit_structure(pruned.fresh_net(), pruned.net.state_dict(), pruned.removed)
    net.load_state_dict(pruned.net.state_dict(), assign=True)
    pruned.net = net.eval()
    assert torch.equal(pruned(x_BCHW).embedding_BD, expected_BD)


@torch.no_grad()
@pytest.mark.parametrize("name", ["resnet", "efficientnet", "vit"])
def test_channels_name_the_rows_that_are_left_over_two_prunings(name):
    model = family(name)
    once, _ = prune(model, ratio=0.3, round_to=2, criterion="random")
    twice, _ = prune(once, ratio=0.3, round_to=2, criterion="random", seed=1)
    assert twice.channels.keys() >= once.channels.keys() and not model.channels
    narrowed = set()
    for layer, kept in twice.channels.items():
        assert kept == sorted(set(kept)) and set(kept) <= set(once.channels.get(layer, kept))
        dense = model.net.get_submodule(layer).weight
        ours = twice.net.get_submodule(layer).weight
        assert len(kept) == len(ours) < len(dense)
        narrowed.add(layer)
        if ours.shape[1:] == dense.shape[1:]:
            assert torch.equal(ours, dense[kept])
    wider = {
        n
        for n, m in twice.net.named_modules()
        if isinstance(m, nn.Conv2d | nn.Linear)
        and len(m.weight) < len(model.net.get_submodule(n).weight)
    }
    assert narrowed == wider


def test_whole_residual_streams_of_convnext_go_with_their_norms_and_layer_scales():
    model = family("convnext")
    pruned, _ = prune(model, ratio=0.5, scope="all")
    block = pruned.net.stages[1].blocks[0]
    assert block.gamma.shape == (16,) and block.norm.normalized_shape == (16,)
    assert block.conv_dw.groups == block.conv_dw.in_channels == 16
    assert pruned.net.stages[3].blocks[0].gamma.shape == (48,)


class Grouped(nn.Module):
    """Two grouped convolutions, with the norm that is given."""

    def __init__(self, norm):
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(3, 16, 1),
            norm,
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, groups=4),
            nn.ReLU(),
            nn.Conv2d(32, 8, 1),
        )

    def forward(self, x_BCHW):
        return self.block(x_BCHW).mean((2, 3))


@torch.no_grad()
def test_a_grouped_convolution_loses_whole_groups():
    torch.manual_seed(0)
    model = Wrapped(Grouped(nn.BatchNorm2d(16)), torch.rand(2, 3, 8, 8)).eval()
    pruned, _ = prune(model, ratio=0.5)
    conv = pruned.net.block[3]
    assert (conv.groups, conv.in_channels, conv.out_channels) == (2, 8, 16)
    assert conv.weight.shape == (16, 4, 3, 3)
    (group,) = find_groups(model)
    pair = [change(model, [group], every_other_unit([group])) for change in (masked, remove)]
    x_BCHW = torch.rand(2, 3, 8, 8)
    assert torch.allclose(*(m(x_BCHW).embedding_BD for m in pair), atol=1e-6)


def test_the_groups_of_a_group_norm_stay_equal():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 1), nn.GroupNorm(4, 16), nn.ReLU(), nn.Conv2d(16, 8, 8), nn.Flatten()
    )
    model = Wrapped(nn.Sequential(net).eval(), torch.rand(2, 3, 8, 8))
    pruned, _ = prune(model, ratio=0.5)
    norm = pruned.net[0][1]
    assert (norm.num_groups, norm.num_channels) == (4, 8)
    kept = torch.tensor(pruned.channels["0.0"])
    assert (kept // 4).bincount().tolist() == [2, 2, 2, 2]


def test_a_norm_of_one_channel_each_keeps_its_layer_whole():
    net = nn.Sequential(
        nn.Conv2d(3, 16, 1), nn.GroupNorm(16, 16), nn.Conv2d(16, 8, 8), nn.Conv2d(8, 4, 1),
        nn.Flatten(),
    )  # fmt: skip
    model = Wrapped(nn.Sequential(net).eval(), torch.rand(2, 3, 8, 8))
    found = survey(model)
    assert found.whole == {"0.0": "each channel is a group of its own in 0.1"}
    _, record = prune(model, ratio=0.5, round_to=2)
    assert record["whole"] == "0.0 (each channel is a group of its own in 0.1)"
