import copy

import pytest
import timm
import torch
from timm.layers.attention import Attention
from torch import nn

from ssdistill.errors import UserError
from ssdistill.models.factorized import Factorized
from ssdistill.models.structure import fit_structure

RESNET = {"layers": (1, 1, 1, 0), "stem_type": "deep"}
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 3, "num_heads": 4}


def net_of(name, **args):
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=0, **args)
    for module in net.modules():  # what is zero or one at first would hide a mix-up
        for parameter in module._parameters.values():
            if parameter is not None and parameter.ndim == 1:
                nn.init.normal_(parameter, 0.5, 0.2)
    return net.eval()


def refit(dense, compressed, removed=()):
    """``dense`` brought to the structure of ``compressed``, with its weights."""
    state = compressed.state_dict()
    fitted = fit_structure(dense, state, removed)
    fitted.load_state_dict(state, strict=True)
    return fitted.eval()


@torch.no_grad()
def assert_same(one, other, inputs):
    assert torch.equal(one(inputs), other(inputs))
    attributes = ("in_channels", "out_channels", "groups", "in_features", "out_features",
                  "num_features", "normalized_shape", "num_heads", "attn_dim")  # fmt: skip
    for (name, a), (_, b) in zip(one.named_modules(), other.named_modules(), strict=True):
        for key in attributes if a._parameters or hasattr(a, "qkv") else ():
            assert getattr(a, key, None) == getattr(b, key, None), f"{name}.{key}"


@pytest.mark.parametrize(
    ("name", "dense", "narrow"),
    [
        (
            "resnet10t",
            RESNET | {"channels": (16, 32, 64, 64), "stem_width": 8},
            RESNET | {"channels": (8, 24, 16, 64), "stem_width": 4},
        ),
        ("mobilenetv3_small_100", {}, {"name": "mobilenetv3_small_075"}),
        ("test_efficientnet", {}, {"channel_multiplier": 0.5}),
        ("test_convnext", {}, {"dims": (8, 16, 32, 64)}),
        ("vit_tiny_patch16_224", VIT, VIT | {"mlp_ratio": 2}),
    ],
)
def test_widths_come_back_from_shapes_alone(name, dense, narrow):
    dense, narrow = net_of(name, **dense), net_of(**{"name": name} | narrow)
    inputs = torch.rand(2, 3, 32, 32)
    assert_same(refit(dense, narrow), narrow, inputs)


def test_fewer_heads_come_back():
    dense, narrow = net_of("vit_tiny_patch16_224", **VIT), net_of("vit_tiny_patch16_224", **VIT)
    for block, heads in zip(narrow.blocks, (1, 3, 4), strict=True):
        block.attn = Attention(64, num_heads=heads, attn_head_dim=16, qkv_bias=True).eval()
    assert_same(refit(dense, narrow), narrow, torch.rand(2, 3, 32, 32))


class Heads(nn.Module):
    """What a library's attention module holds: its layers and how many heads they make."""

    def __init__(self, layer, heads, width=4):
        super().__init__()
        self.add_module(layer, nn.Linear(12, heads * width))
        self.n_heads, self.inner_dim = heads, heads * width


@pytest.mark.parametrize("layer", ["query", "q_proj", "q_lin", "q"])
def test_heads_are_counted_by_the_layer_of_the_queries(layer):
    narrow = nn.Sequential(Heads(layer, 2))
    fitted = refit(nn.Sequential(Heads(layer, 3)), narrow)
    assert (fitted[0].n_heads, fitted[0].inner_dim) == (2, 8)


def test_a_width_that_is_no_number_of_heads_is_refused():
    net = net_of("vit_tiny_patch16_224", **VIT)
    state = net.state_dict()
    state["blocks.0.attn.qkv.weight"] = torch.zeros(3 * 40, 64)
    with pytest.raises(
        UserError, match=r"'blocks\.0\.attn\.qkv\.weight'.*not a multiple of the head width 16"
    ):
        fit_structure(net, state)


def test_bert_with_fewer_heads_and_a_narrower_middle_comes_back():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 50}
    config = transformers.BertConfig(**sizes, intermediate_size=64)
    dense = transformers.BertModel(config).eval()
    narrow = transformers.BertModel(transformers.BertConfig(**sizes, intermediate_size=24)).eval()
    attention = narrow.encoder.layer[1].attention
    for key in ("query", "key", "value"):
        setattr(attention.self, key, nn.Linear(32, 16))
    attention.self.num_attention_heads, attention.self.all_head_size = 2, 16
    attention.output.dense = nn.Linear(16, 32)
    fitted = refit(dense, narrow)
    assert fitted.encoder.layer[1].attention.self.num_attention_heads == 2
    assert fitted.encoder.layer[1].attention.self.all_head_size == 16
    ids = torch.arange(10).view(2, 5)
    with torch.no_grad():
        assert torch.equal(fitted(ids).pooler_output, narrow(ids).pooler_output)


def test_removed_blocks_become_identities():
    dense, shorter = (net_of("vit_tiny_patch16_224", **VIT) for _ in range(2))
    shorter.blocks[1] = nn.Identity()
    fitted = refit(dense, shorter, ("blocks.1",))
    assert isinstance(fitted.blocks[1], nn.Identity)
    assert_same(fitted, shorter, torch.rand(2, 3, 32, 32))


def test_an_unknown_block_is_named():
    net = net_of("vit_tiny_patch16_224", **VIT)
    with pytest.raises(UserError, match=r"cannot remove block 'blocks\.7'"):
        fit_structure(net, net.state_dict(), ("blocks.7",))


@pytest.mark.parametrize(
    ("layer", "rank", "form"),
    [
        (nn.Conv2d(6, 8, 3, stride=2, padding=1), 3, "channel"),
        (nn.Conv2d(6, 8, 3, stride=(1, 2), padding=1), 3, "spatial"),
        (nn.Conv2d(6, 8, 3, padding=2, dilation=2, bias=False), (2, 3), "tucker"),
    ],
)
def test_layers_in_factors_come_back(layer, rank, form):
    dense = nn.Sequential(layer, nn.ReLU(), nn.Conv2d(8, 5, 1))
    factors = Factorized.like(layer, rank, form)
    for parameter in factors.parameters():
        nn.init.normal_(parameter)
    compressed = nn.Sequential(factors, nn.ReLU(), copy.deepcopy(dense[2]))
    fitted = refit(dense, compressed)
    assert isinstance(fitted[0], Factorized) and fitted[0].form == form
    assert_same(fitted, compressed, torch.rand(2, 6, 9, 9))


def test_factors_of_a_layer_that_pruning_had_narrowed_before_come_back():
    dense = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 5))
    narrow = nn.Sequential(nn.Linear(6, 4), Factorized.like(nn.Linear(4, 5), 2, "channel"))
    for parameter in narrow[1].parameters():
        nn.init.normal_(parameter)
    assert_same(refit(dense, narrow), narrow, torch.rand(3, 6))


def test_factors_that_are_none_are_refused():
    net = nn.Sequential(nn.Conv2d(6, 8, 3))
    state = {"0.reduce.weight": torch.zeros(2, 6, 5, 5), "0.expand.weight": torch.zeros(8, 2, 1, 1)}
    with pytest.raises(UserError, match=r"tensor '0\.reduce\.weight'"):
        fit_structure(net, state)


def test_biases_that_a_layer_did_not_have_are_added():
    dense = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.Flatten(), nn.Linear(8, 4, bias=False))
    richer = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Flatten(), nn.Linear(6, 4))
    assert_same(refit(copy.deepcopy(dense), richer), richer, torch.rand(2, 3, 3, 3))
    state = richer.state_dict() | {"0.bias": torch.zeros(5)}
    with pytest.raises(UserError, match=r"'0\.bias' has shape \(5,\) in the file but absent"):
        fit_structure(dense, state)


@pytest.mark.parametrize(
    "narrow",
    [
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, groups=2)),  # whole groups gone
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, groups=4)),  # some inputs of each
        nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 3, groups=4)),  # some outputs of each
    ],
)
def test_grouped_convolutions_come_back(narrow):
    dense = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=4))
    assert_same(refit(dense, narrow), narrow, torch.rand(2, 3, 5, 5))


def test_a_grouped_transposed_convolution_comes_back():
    dense = nn.Sequential(nn.ConvTranspose1d(8, 8, 2, groups=2))
    narrow = nn.Sequential(nn.ConvTranspose1d(8, 6, 2, groups=2))
    assert_same(refit(dense, narrow), narrow, torch.rand(2, 8, 5))


def test_other_convolutions_norms_and_embeddings_come_back():
    def build(width):
        return nn.ModuleDict(
            {
                "conv": nn.Conv1d(3, width, 3),
                "norm": nn.GroupNorm(4, width),
                "up": nn.ConvTranspose1d(width, 5, 2),
                "rms": nn.RMSNorm(width),
                "embedding": nn.Embedding(7, width),
            }
        )

    narrow = build(8)
    fitted = refit(build(12), narrow)
    x, index = torch.rand(2, 3, 9), torch.tensor([1, 6])
    for net in (fitted, narrow):
        assert net["norm"].num_channels == 8 and net["embedding"].embedding_dim == 8
        assert net["up"].in_channels == 8 and net["rms"].normalized_shape == (8,)
    for run in (
        lambda net: net["up"](net["norm"](net["conv"](x))),
        lambda net: net["rms"](net["embedding"](index)),
    ):
        assert torch.equal(run(fitted), run(narrow))


def test_nothing_is_allocated_on_meta():
    narrow = net_of("resnet10t", **RESNET, channels=(8, 24, 16, 64), stem_width=4)
    dense = net_of("resnet10t", **RESNET, channels=(16, 32, 64, 64), stem_width=8).to("meta")
    fitted = fit_structure(dense, narrow.state_dict())
    assert {tensor.device.type for tensor in fitted.state_dict().values()} == {"meta"}
    shapes = {key: tensor.shape for key, tensor in fitted.state_dict().items()}
    assert shapes == {key: tensor.shape for key, tensor in narrow.state_dict().items()}


def test_frozen_layers_stay_frozen():
    dense = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)).requires_grad_(False)
    narrow = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))
    fitted = fit_structure(dense, narrow.state_dict())
    assert not any(parameter.requires_grad for parameter in fitted.parameters())


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("conv.weight", (8, 3, 5, 5)),  # another kernel
        ("conv.weight", (9, 3, 3, 3)),  # wider
        ("conv.bias", (5,)),  # not as wide as its layer
        ("norm.running_mean", (5,)),  # not as wide as its norm
        ("norm.num_batches_tracked", (1,)),
        ("embedding.weight", (5, 4)),  # fewer words
        ("position", (1, 3, 4)),  # fewer places
        ("grouped.weight", (6, 2, 3, 3)),  # not for its groups
    ],
)
def test_what_no_compression_explains_is_refused_by_name(key, shape):
    net = nn.Module()
    net.conv, net.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
    net.embedding, net.position = nn.Embedding(6, 4), nn.Parameter(torch.zeros(1, 4, 4))
    net.grouped = nn.Conv2d(12, 8, 3, groups=4, bias=False)
    with pytest.raises(UserError, match=rf"tensor '{key}' has") as caught:
        fit_structure(net, net.state_dict() | {key: torch.zeros(shape)})
    assert "\n" not in str(caught.value)
