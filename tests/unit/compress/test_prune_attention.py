import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from ssdistill.compress import Context
from ssdistill.compress.prune import Prune
from ssdistill.compress.pruning.attention import find_attention
from ssdistill.errors import UserError
from ssdistill.models.backbones import EncoderSettings, build_encoder
from ssdistill.models.wrapped import Wrapped

HEADS, WIDTH = 4, 16


def vit(depth=2, **args):
    torch.manual_seed(0)
    args = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "num_heads": HEADS} | args
    settings = EncoderSettings(name="vit_tiny_patch16_224", args={"depth": depth} | args)
    return build_encoder(settings, 32).eval()


def bert():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=16,
    )
    net = transformers.BertModel(config).eval()
    ids_BT = torch.randint(0, 50, (3, 8))
    return Wrapped(net, ids_BT, embed=lambda net, x_BT: net(x_BT).pooler_output).eval()


def prune(model, **settings):
    context = Context(images=lambda n, seed: model.example(n), folder=Path())
    return Prune(**settings).apply(model, context), context.record


def rows_of(heads, width, times=1):
    return [
        part * HEADS * width + head * width + i
        for part in range(times)
        for head in heads
        for i in range(width)
    ]


def silence(model, proj, heads_gone, width):
    with torch.no_grad():
        for head in heads_gone:
            model.net.get_submodule(proj).weight[:, head * width : (head + 1) * width] = 0


@torch.no_grad()
def test_heads_of_a_vit_go_as_if_their_output_were_zero():
    model = vit()
    pruned, _ = prune(model, ratio=0.5, units=("heads",), criterion="random")
    dense = copy.deepcopy(model)
    for number, block in enumerate(pruned.net.blocks):
        attention = block.attn
        assert (attention.num_heads, attention.head_dim, attention.attn_dim) == (2, WIDTH, 32)
        rows = pruned.channels[f"blocks.{number}.attn.qkv"]
        kept = sorted({row // WIDTH for row in rows if row < HEADS * WIDTH})
        assert rows == rows_of(kept, WIDTH, times=3)
        assert torch.equal(attention.qkv.bias, model.net.blocks[number].attn.qkv.bias[rows])
        silence(dense, f"blocks.{number}.attn.proj", set(range(HEADS)) - set(kept), WIDTH)
    assert set(pruned.channels) == {"blocks.0.attn.qkv", "blocks.1.attn.qkv"}
    x_BCHW = torch.rand(2, 3, 32, 32)
    expected_BD = dense(x_BCHW).embedding_BD
    assert torch.allclose(pruned(x_BCHW).embedding_BD, expected_BD, atol=1e-5)
    assert not torch.allclose(model(x_BCHW).embedding_BD, expected_BD, atol=1e-3)


@torch.no_grad()
def test_heads_of_bert_go_as_if_their_output_were_zero():
    model = bert()
    pruned, _ = prune(model, ratio=0.5, units=("heads",), criterion="random")
    dense = copy.deepcopy(model)
    for number, layer in enumerate(pruned.net.encoder.layer):
        attention, name = layer.attention.self, f"encoder.layer.{number}.attention"
        found = (attention.num_attention_heads, attention.attention_head_size)
        assert (*found, attention.all_head_size) == (2, 8, 16)
        rows = pruned.channels[f"{name}.self.query"]
        assert rows == pruned.channels[f"{name}.self.value"] and len(rows) == 16
        kept = {row // 8 for row in rows}
        assert rows == rows_of(sorted(kept), 8)
        silence(dense, f"{name}.output.dense", set(range(HEADS)) - kept, 8)
    ids_BT = torch.randint(0, 50, (2, 8))
    expected_BD = dense(ids_BT).embedding_BD
    assert torch.allclose(pruned(ids_BT).embedding_BD, expected_BD, atol=1e-5)
    assert not torch.allclose(model(ids_BT).embedding_BD, expected_BD, atol=1e-4)


@pytest.mark.parametrize("make", [vit, bert])
def test_hidden_units_of_the_feed_forward_part_go_too(make):
    model = make()
    pruned, record = prune(model, ratio=0.5)
    layers = {name.rpartition(".")[2] for name in pruned.channels}
    assert layers in ({"qkv", "fc1"}, {"query", "key", "value", "dense"})
    assert record["prunable"] == 4
    shares = [record[f"{key}_after"] / record[f"{key}_before"] for key in ("parameters", "macs")]
    assert all(0.4 < share < 0.65 for share in shares)


@pytest.mark.parametrize("scope", ["inner", "all"])
def test_one_head_of_each_attention_is_left_at_least(scope):
    pruned, _ = prune(vit(), ratio=0.99, scope=scope, global_ranking=True, round_to=1)
    assert [b.attn.num_heads for b in pruned.net.blocks] == [1, 1]
    assert pruned(torch.rand(2, 3, 32, 32)).embedding_BD.shape == (2, 64)


def test_heads_alone_and_channels_alone():
    heads, _ = prune(vit(), ratio=0.5, units=("heads",))
    channels, _ = prune(vit(), ratio=0.5, units=("channels",))
    assert heads.net.blocks[0].mlp.fc1.out_features == 256
    assert channels.net.blocks[0].attn.num_heads == HEADS
    assert channels.net.blocks[0].mlp.fc1.out_features == 128


def test_norms_of_queries_and_keys_stay_as_they_are():
    pruned, _ = prune(vit(qk_norm=True), ratio=0.5, units=("heads",))
    attention = pruned.net.blocks[0].attn
    assert attention.q_norm.normalized_shape == (WIDTH,) and attention.num_heads == 2


class Positions(nn.Module):
    """Attention with a table that has one row for each head."""

    def __init__(self):
        super().__init__()
        self.num_heads, self.head_dim, self.attn_dim = 2, 4, 8
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)
        self.table = nn.Parameter(torch.rand(2, 1, 1))

    def forward(self, x_BTC):
        q, k, v = self.qkv(x_BTC).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(2, 3) + self.table).softmax(3)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


def test_attention_of_another_kind_stays_whole_and_is_named():
    net = nn.Sequential(nn.Unflatten(1, (2, 8)), Positions(), nn.Flatten())
    model = Wrapped(net, torch.rand(2, 16))
    (found,) = find_attention(model.net)
    assert not found.members
    with pytest.raises(UserError, match=r"1.qkv \(unsupported type of attention\)"):
        prune(model, ratio=0.5)


def test_a_protected_layer_keeps_the_heads_it_reads():
    pruned, record = prune(vit(), ratio=0.5, units=("heads",), protect=("blocks.1.attn.proj",))
    assert [block.attn.num_heads for block in pruned.net.blocks] == [2, 4]
    assert record["whole"] == "blocks.1.attn.qkv (protected by blocks.1.attn.proj)"
