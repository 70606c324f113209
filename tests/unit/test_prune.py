import copy
from pathlib import Path

import pytest
import torch

from ssdistill.compress import Context, Step
from ssdistill.compress.prune import Prune
from ssdistill.errors import UserError
from ssdistill.measure.macs import count_macs
from ssdistill.measure.parameters import count_parameters
from ssdistill.models.backbones import EncoderSettings, build_encoder
from ssdistill.registry import STEPS

SMALL = {
    "layers": (1, 1, 1, 0),
    "channels": (16, 32, 64, 64),
    "stem_type": "deep",
    "stem_width": 8,
    "zero_init_last": False,
}
INNER = ("layer1.0.conv1", "layer2.0.conv1", "layer3.0.conv1")


def encoder_of(name="resnet10t", size=32, **args):
    torch.manual_seed(0)
    args = args or (SMALL if name == "resnet10t" else {})
    return build_encoder(EncoderSettings(name=name, args=args, stem_stride=2), size).eval()


def prune(encoder, **settings):
    context = Context(images=lambda n, seed: torch.zeros(0), folder=Path())
    return Prune(**settings).apply(encoder, context), context.record


def widths(encoder):
    return {n: tuple(p.shape) for n, p in encoder.net.named_parameters()}


def test_the_registry_finds_the_step_and_its_settings():
    settings = STEPS.schema("prune")(ratio=0.25)
    step = STEPS.build(settings)
    assert isinstance(step, Step) and isinstance(step, Prune) and step.ratio == 0.25


@torch.no_grad()
def test_pruned_equals_the_dense_network_with_the_removed_channels_masked():
    encoder = encoder_of()
    masked = copy.deepcopy(encoder)
    pruned, _ = prune(encoder, ratio=0.5, criterion="random", round_to=4)
    for name in INNER:
        conv, norm = masked.net.get_submodule(name), masked.net.get_submodule(name[:-5] + "bn1")
        stay = pruned.net.get_submodule(name).weight
        kept = {
            c for c in range(len(conv.weight)) for row in stay if torch.equal(conv.weight[c], row)
        }
        assert len(kept) == len(stay) < len(conv.weight)
        gone = sorted(set(range(len(conv.weight))) - kept)
        norm.weight[gone], norm.bias[gone] = 0, 0
    x_BCHW = torch.rand(4, 3, 32, 32)
    expected_BD, found_BD = masked(x_BCHW).embedding_BD, pruned(x_BCHW).embedding_BD
    assert torch.allclose(expected_BD, found_BD, atol=1e-5)
    assert not torch.allclose(encoder(x_BCHW).embedding_BD, found_BD, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("criterion", ["l1", "l2", "bn_scale"])
def test_channels_that_do_nothing_go_first(criterion):
    encoder = encoder_of()
    for name in INNER:
        conv, block = encoder.net.get_submodule(name), encoder.net.get_submodule(name[:-6])
        for tensor in (conv.weight, block.bn1.weight, block.bn1.bias):
            tensor[::2] = 0
        block.conv2.weight[:, ::2] = 0
    pruned, _ = prune(encoder, ratio=0.5, criterion=criterion)
    x_BCHW = torch.rand(4, 3, 32, 32)
    assert torch.allclose(
        encoder(x_BCHW).embedding_BD, pruned(x_BCHW).embedding_BD, rtol=1e-4, atol=1e-5
    )


def test_inner_leaves_the_residual_stream_and_all_narrows_it():
    encoder = encoder_of()
    dense = widths(encoder)
    inner, all_of_it = (widths(prune(encoder, ratio=0.5, scope=s)[0]) for s in ("inner", "all"))
    changed = {name for name in dense if dense[name] != inner[name]}
    assert {name.rsplit(".", 1)[0] for name in changed} == {
        f"layer{i}.0.{part}" for i in (1, 2, 3) for part in ("conv1", "bn1", "conv2")
    }
    assert all_of_it["layer1.0.bn2.weight"] == (8,) and all_of_it["layer3.0.bn2.weight"] == (64,)


def test_the_given_encoder_stays_as_it_was():
    encoder = encoder_of()
    encoder.net.conv1.weight.requires_grad_(False)
    before = copy.deepcopy(encoder.net.state_dict())
    pruned, _ = prune(encoder, ratio=0.5)
    assert all(torch.equal(v, before[k]) for k, v in encoder.net.state_dict().items())
    assert not pruned.net.conv1.weight.requires_grad
    assert pruned.net.bn1.weight.requires_grad and pruned.net.bn1.weight.grad is None


@pytest.mark.parametrize(
    ("budget", "measure"), [("macs", count_macs), ("parameters", count_parameters)]
)
def test_budget_is_met_and_not_undershot_by_much(budget, measure):
    encoder = encoder_of()
    pruned, record = prune(encoder, round_to=2, **{budget: 0.7})
    assert 0.6 < measure(pruned) / measure(encoder) <= 0.7
    assert record[f"{budget}_after"] == measure(pruned)


def test_widths_are_multiples_of_round_to():
    pruned, _ = prune(encoder_of(), ratio=0.3, round_to=8, global_ranking=True)
    assert all(pruned.net.get_submodule(name).out_channels % 8 == 0 for name in INNER)


@pytest.mark.parametrize(
    ("name", "size", "args"),
    [
        ("resnet26", 32, {"layers": (1, 1, 1, 1), "channels": (8, 16, 16, 16)}),
        ("mobilenetv3_small_050", 32, {}),
        ("tinynet_e", 32, {}),
        (
            "vit_tiny_patch16_224",
            32,
            {"img_size": 32, "patch_size": 8, "depth": 1, "embed_dim": 48},
        ),
    ],
)
def test_other_architectures_keep_their_embedding_width(name, size, args):
    encoder = encoder_of(name, size, **args)
    pruned, record = prune(encoder, ratio=0.5)
    assert pruned(torch.rand(2, 3, size, size)).embedding_BD.shape == (2, encoder.embed_dim)
    assert record["parameters_after"] == count_parameters(pruned) < record["parameters_before"]


def test_random_choice_follows_the_seed():
    encoder = encoder_of()
    one, same, other = (
        prune(encoder, ratio=0.5, criterion="random", seed=s)[0].net.layer3[0].conv1.weight
        for s in (0, 0, 1)
    )
    assert torch.equal(one, same) and not torch.equal(one, other)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "exactly one"),
        ({"ratio": 0.5, "macs": 0.5}, "exactly one"),
        ({"ratio": 0.5, "round_to": 64}, "round_to=64 leaves every width of 'resnet10t'"),
        ({"macs": 0.05}, "macs=0.05 is out of reach"),
    ],
)
def test_what_cannot_be_done_is_said(settings, words):
    encoder = encoder_of()
    with pytest.raises(UserError, match=words):
        prune(encoder, **settings)


def test_an_architecture_that_could_not_be_loaded_again_is_refused_by_name():
    encoder = encoder_of("convnext_atto", 32, depths=(1, 1, 1, 1), dims=(16, 16, 32, 32))
    with pytest.raises(UserError, match="does not support 'convnext_atto'"):
        prune(encoder, ratio=0.5, scope="all")
