import copy
import weakref

import pytest
import timm
import torch
from torch import nn

from ssdistill.errors import UserError
from ssdistill.models.backbones import EncoderSettings, build_encoder
from ssdistill.models.class_attention import class_token_logits
from ssdistill.models.final_patches import FINAL_PATCHES

RESNET = {"layers": (1, 1, 1, 0), "channels": (16, 32, 64, 64)}
RESNET |= {"stem_type": "deep", "stem_width": 8}
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4}
SIZE = 32


def build_small(name="resnet10t", args=None, **settings):
    torch.manual_seed(0)
    encoder = build_encoder(EncoderSettings(name=name, args=args or {}, **settings), SIZE).eval()
    for module in encoder.modules():
        # timm starts residual branches at zero: such a block's ReLU has nothing to cut off.
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return encoder


def resnet():
    return build_small(args=RESNET)


def vit(**args):
    return build_small("vit_tiny_patch16_224", {**VIT, **args})


def images(count=2):
    return torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


ENCODERS = {
    "resnet10t": resnet,
    "regnety_002": lambda: build_small("regnety_002"),
    "mobilenetv3_small_050": lambda: build_small("mobilenetv3_small_050"),
    "efficientnet_b0": lambda: build_small("efficientnet_b0"),
    "convnext_atto": lambda: build_small("convnext_atto"),
    "vit": vit,
    "vit with registers": lambda: vit(reg_tokens=4, qk_norm=True),
    "vit of DINOv3": lambda: build_small("vit_small_patch16_dinov3", VIT),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_every_name_can_be_tapped_and_comes_in_the_order_asked_for(name):
    encoder = ENCODERS[name]()
    plain_BD = encoder(images()).embedding_BD
    names = encoder.tap_names[::-1]
    encoder.set_taps(tuple(names))
    shapes = encoder.map_shapes()
    found = encoder(images())
    assert list(shapes) == list(found.maps) == names
    assert {name: tuple(m.shape[1:]) for name, m in found.maps.items()} == shapes
    assert torch.allclose(found.embedding_BD, plain_BD, atol=1e-6)


@pytest.mark.parametrize(
    "name, stages",
    [
        ("resnet10t", ["act1", "layer1", "layer2", "layer3"]),
        ("regnety_002", ["stem", "s1", "s2", "s3", "s4"]),
        ("mobilenetv3_small_050", []),
        ("efficientnet_b0", []),
        ("convnext_atto", []),
        ("vit", []),
    ],
)
def test_only_stages_that_end_in_a_relu_can_be_tapped_before_it(name, stages):
    encoder = ENCODERS[name]()
    lead = "before_relu:"
    found = [tap.removeprefix(lead) for tap in encoder.tap_names if tap.startswith(lead)]
    assert found == stages
    encoder.set_taps(tuple(encoder.tap_names))
    maps = encoder(images()).maps
    for stage in stages:
        assert torch.equal(maps[lead + stage].relu(), maps[stage])
        assert (maps[lead + stage] < 0).any()


def test_an_empty_stage_ends_in_nothing():
    assert "layer4" in resnet().tap_names
    assert "before_relu:layer4" not in resnet().tap_names


def test_the_gradient_of_a_map_before_its_relu_is_that_of_what_feeds_it():
    encoder = resnet()
    encoder.set_taps(("before_relu:layer3", "layer3"))
    maps = encoder(images()).maps
    convolution = encoder.net.layer3[0].conv2.weight
    before, after = (
        torch.autograd.grad(maps[name].sum(), convolution, retain_graph=True)[0]
        for name in ("before_relu:layer3", "layer3")
    )
    assert before.abs().max() > 0
    assert not torch.allclose(before, after)


def test_the_norms_are_those_of_the_residual_branches():
    encoder = resnet()
    norms = encoder.stage_norms()
    assert list(norms) == ["act1", "layer1", "layer2", "layer3"]
    mean_C, std_C = norms["layer2"]
    assert torch.equal(mean_C, encoder.net.layer2[0].bn2.bias)
    assert torch.equal(std_C, encoder.net.layer2[0].bn2.weight.abs())
    assert torch.equal(norms["act1"][1], encoder.net.bn1.weight.abs())
    assert not any(t.requires_grad for pair in norms.values() for t in pair)


def test_without_a_batch_norm_or_a_relu_there_are_no_norms():
    assert build_small("resnet50_gn", {"layers": (1, 1, 1, 1)}).stage_norms() == {}
    assert ENCODERS["mobilenetv3_small_050"]().stage_norms() == {}


def attention_of_the_block(encoder, block):
    """Softmax weights as timm's own arithmetic has them, (B, heads, N)."""
    caught = []
    attention = encoder.net.get_submodule(block).attn
    attention.fused_attn = False
    handle = attention.attn_drop.register_forward_hook(lambda m, args, out: caught.append(out))
    with torch.no_grad():
        encoder(images())
    handle.remove()
    return caught[0][:, :, 0]


@pytest.mark.parametrize("args", [{}, {"reg_tokens": 4}, {"qk_norm": True}, {"qkv_bias": False}])
def test_attention_is_what_the_class_token_attends_to(args):
    encoder = vit(**args)
    for block in ("blocks.0", "blocks.2"):
        encoder.set_taps((f"attention:{block}",))
        logits_BH1N = encoder(images()).maps[f"attention:{block}"]
        assert logits_BH1N.shape == (2, 4, 1, 16 + 1 + args.get("reg_tokens", 0))
        expected_BHN = attention_of_the_block(encoder, block)
        assert torch.allclose(logits_BH1N[:, :, 0].softmax(-1), expected_BHN, atol=1e-6)
        assert expected_BHN.std(-1).min() > 0


ROTATED = {
    "vit_small_patch16_dinov3": {},
    "vit_small_patch16_dinov3_qkvb": {},
    "vit_small_patch16_lingbot": {},
    "vit_small_patch16_rope_224": {},
    "vit_small_patch16_rope_mixed_224": {},
    "eva02_tiny_patch14_224": {},
    "vit_pe_core_tiny_patch16_384": {},
    "vit_pe_spatial_tiny_patch16_512": {},
}


@pytest.mark.parametrize("name", [name for name in ROTATED if timm.is_model(name)])
def test_the_class_token_attends_to_rotated_keys(name):
    """Transformers that timm builds as ``Eva``: DINOv3, EVA-02, PE, LingBot and others."""
    encoder = build_small(name, {**VIT, **ROTATED[name]})
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.3)
    taps = [tap for tap in encoder.tap_names if tap.startswith("attention:")]
    assert taps == [f"attention:blocks.{i}" for i in range(3)]
    encoder.set_taps(("attention:blocks.2",))
    logits_BH1N = encoder(images()).maps["attention:blocks.2"]
    expected_BHN = attention_of_the_block(encoder, "blocks.2")
    assert torch.allclose(logits_BH1N[:, :, 0].softmax(-1), expected_BHN, atol=1e-5)
    assert expected_BHN.std(-1).min() > 1e-3


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_dinov3"])
def test_maps_of_blocks_go_through_the_last_norm(name):
    encoder = build_small(name, VIT)
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.3)
    encoder.set_taps(("blocks.1", "final:blocks.1", "final:blocks.2", FINAL_PATCHES))
    maps = encoder(images()).maps
    assert [*maps] == [*encoder.taps]
    assert torch.equal(maps["final:blocks.2"], maps[FINAL_PATCHES])
    expected = encoder.net.norm(maps["blocks.1"].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    assert torch.equal(maps["final:blocks.1"], expected)
    encoder.set_taps(("final:blocks.1",))
    assert torch.equal(encoder(images()).maps["final:blocks.1"], expected)


def test_logits_follow_from_queries_and_keys():
    encoder = vit(qk_norm=True)
    attention, caught = encoder.net.blocks[1].attn, []
    handle = attention.qkv.register_forward_hook(lambda m, args, out: caught.append(out))
    encoder.set_taps(("attention:blocks.1",))
    logits_BH1N = encoder(images()).maps["attention:blocks.1"]
    handle.remove()
    assert torch.allclose(class_token_logits(attention, caught[-1]), logits_BH1N, atol=1e-6)


def test_every_block_of_a_transformer_with_a_class_token_is_listed():
    names = vit().tap_names
    blocks = [f"blocks.{i}" for i in range(3)]
    attention, final = ([f"{lead}:{block}" for block in blocks] for lead in ("attention", "final"))
    assert names == [*blocks, *attention, *final, FINAL_PATCHES]
    without = vit(class_token=False, global_pool="avg")
    assert without.tap_names == [*blocks, *final, FINAL_PATCHES]


def test_attention_with_a_bias_of_its_own_is_not_listed():
    args = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
    encoder = build_small("vit_relpos_small_patch16_224", args)
    for one in (encoder, vit(attn_layer="diff")):
        assert "blocks.1" in one.tap_names
        assert not any(name.startswith("attention:") for name in one.tap_names)


def test_the_attention_sends_a_gradient_to_queries_and_keys_only():
    encoder = vit()
    encoder.set_taps(("attention:blocks.2",))
    logits = encoder(images()).maps["attention:blocks.2"]
    logits.square().sum().backward()
    query, key, value = encoder.net.blocks[2].attn.qkv.weight.grad.chunk(3)
    assert query.abs().max() > 0 and key.abs().max() > 0
    assert value.abs().max() == 0


def hook_count(module):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


@pytest.mark.parametrize(
    "encoder, tap", [(resnet, "before_relu:layer2"), (vit, "attention:blocks.1")]
)
def test_nothing_is_caught_once_nothing_is_tapped(encoder, tap):
    encoder = encoder()
    before = hook_count(encoder)
    encoder.set_taps((tap,))
    assert hook_count(encoder) > before
    encoder.set_taps((tap,))
    assert hook_count(encoder) > before
    encoder.taps = ()
    assert hook_count(encoder) == before
    assert encoder(images()).maps == {}


@pytest.mark.parametrize(
    "encoder, tap", [(resnet, "before_relu:layer2"), (vit, "attention:blocks.1")]
)
def test_a_copy_returns_its_own_maps(encoder, tap):
    encoder = encoder()
    encoder.set_taps((tap,))
    other = copy.deepcopy(encoder)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
        ours, theirs = (e(images()).maps[tap] for e in (encoder, other))
        again = encoder(images()).maps[tap]
    assert torch.equal(again, ours)
    assert not torch.allclose(ours, theirs)
    other.set_taps(())
    assert other(images()).maps == {}
    assert list(encoder(images()).maps) == [tap]


@pytest.mark.parametrize(
    "encoder, tap", [(resnet, "before_relu:layer2"), (vit, "attention:blocks.1")]
)
def test_an_encoder_holds_on_to_no_map(encoder, tap):
    encoder = encoder()
    encoder.set_taps((tap,))
    maps = encoder(images()).maps
    alive = weakref.ref(maps[tap])
    del maps
    assert alive() is None


@pytest.mark.parametrize("name", ["resnet10t", "vit with registers"])
def test_a_compiled_encoder_returns_the_same_maps(name):
    encoder = ENCODERS[name]()
    encoder.set_taps(tuple(encoder.tap_names))
    with torch.no_grad():
        expected = encoder(images()).maps
        # Without graph breaks, and without a compiler for the processor.
        found = torch.compile(encoder, backend="eager", fullgraph=True)(images()).maps
    assert list(found) == list(expected)
    for tap, value in expected.items():
        assert torch.allclose(found[tap], value, atol=1e-5), tap


@pytest.mark.parametrize("name", ["resnet10t", "vit with registers"])
def test_bfloat16_autocast_catches_near_the_same(name):
    encoder = ENCODERS[name]()
    encoder.set_taps(tuple(encoder.tap_names))
    with torch.no_grad():
        expected = encoder(images()).maps
        with torch.autocast("cpu", torch.bfloat16):
            found = encoder(images()).maps
    for tap, value in expected.items():
        assert (found[tap].float() - value).abs().max() <= 0.05 * value.abs().max(), tap


def test_looking_for_relus_changes_no_mode_and_no_statistic():
    encoder = resnet().train()
    before = copy.deepcopy(encoder.state_dict())
    state = torch.get_rng_state()
    encoder.set_taps(("before_relu:layer1",))
    assert encoder.training
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_an_unknown_special_tap_names_the_nearest():
    with pytest.raises(UserError, match=r"'before_relu:layr2' \(did you mean 'before_relu:layer2'"):
        resnet().set_taps(("before_relu:layr2",))
    with pytest.raises(UserError, match=r"no feature map 'attention:layer1'.*; available: act1, "):
        resnet().set_taps(("layer1", "attention:layer1"))


def test_a_network_that_lists_no_stages_has_its_last_map_alone():
    encoder = resnet()
    encoder.net.feature_info = None
    assert encoder.tap_names == [FINAL_PATCHES]
    assert encoder(images()).maps == {}
    with pytest.raises(UserError, match="no feature map 'layer1'; available: final:patches"):
        encoder.set_taps(("layer1",))


def test_a_network_without_access_to_its_stages_has_its_last_map_alone(monkeypatch):
    encoder = resnet()
    monkeypatch.delattr(timm.models.ResNet, "forward_intermediates")
    assert encoder.tap_names == [FINAL_PATCHES]
    assert encoder.map_shapes() == {}


ONE_BLOCK = {"embed_dim": 32, "num_heads": 2, "depth": 1, "img_size": 32, "patch_size": 8}
SWIN = {"embed_dim": 16, "depths": (1, 1), "num_heads": (1, 2), "window_size": 4, "img_size": 32}


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("resnet10t", {"layers": (1, 1, 0, 0), "channels": (32, 32, 32, 32)}),
        ("vit_tiny_patch16_224", ONE_BLOCK),
        ("vit_small_patch16_dinov3", ONE_BLOCK),
        ("vit_small_patch14_reg4_dinov2", ONE_BLOCK),
        ("swin_tiny_patch4_window7_224", SWIN),
    ],
)
def test_the_patches_that_are_pooled_are_one_map_for_every_network(name, args):
    encoder = build_small(name, args)
    encoder.set_taps((FINAL_PATCHES,))
    x_BCHW = torch.rand(2, 3, 32, 32)
    found = encoder(x_BCHW)
    patches_BDHW = found.maps[FINAL_PATCHES]
    side = 16 if "resnet" in name else 4
    assert patches_BDHW.shape == (2, 32, side, side)
    if prefix := getattr(encoder.net, "num_prefix_tokens", 0):
        tokens_BND = encoder.features(x_BCHW)
        assert torch.allclose(patches_BDHW.flatten(2).mT, tokens_BND[:, prefix:], atol=1e-5)
    else:  # the embedding is their mean
        assert torch.allclose(patches_BDHW.mean((2, 3)), found.embedding_BD, atol=1e-5)
