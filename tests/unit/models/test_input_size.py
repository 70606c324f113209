"""Encoders that resize images internally, and the padding of the small stem."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F

from ssdistill.artifacts.artifact import load, save_encoder
from ssdistill.errors import UserError
from ssdistill.measure.macs import count_macs
from ssdistill.models.backbones import EncoderSettings, EncoderSpec, build_encoder
from ssdistill.teachers.sizes import fit_size

SMALL_ARGS = {
    "layers": (1, 1, 1, 0),
    "channels": (8, 16, 16, 16),
    "stem_type": "deep",
    "stem_width": 8,
}
TINY_VIT = {"img_size": 48, "patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2}


def build_sized(size=32, **settings):
    torch.manual_seed(0)
    settings = {"name": "resnet10t", "args": SMALL_ARGS, **settings}
    return build_encoder(EncoderSettings(**settings), size).eval()


def resized(x_BCHW, side):
    return F.interpolate(x_BCHW, (side, side), mode="bicubic", antialias=True).clamp(0, 1)


@torch.no_grad()
@pytest.mark.parametrize("given", [16, 32, 64])
def test_views_of_every_size_are_brought_to_the_input_size(given):
    encoder = build_sized(input_size=48)
    x_BCHW = torch.rand(2, 3, given, given).round()  # steps: bicubic overshoots at them
    inside_BCHW = resized(x_BCHW, 48)
    assert torch.equal(encoder(x_BCHW).embedding_BD, encoder(inside_BCHW).embedding_BD)
    net_BD = encoder.net((inside_BCHW - encoder.mean) / encoder.std)
    assert torch.allclose(encoder(x_BCHW).embedding_BD, net_BD, atol=1e-6)
    assert not torch.allclose(build_sized()(x_BCHW).embedding_BD, net_BD, atol=1e-3)


@torch.no_grad()
def test_images_of_the_input_size_pass_untouched():
    resizing, plain, x_BCHW = (
        build_sized(48, input_size=48),
        build_sized(48),
        torch.rand(2, 3, 48, 48),
    )
    assert torch.equal(resizing(x_BCHW).embedding_BD, plain(x_BCHW).embedding_BD)


@torch.no_grad()
def test_images_are_resized_in_full_precision_in_a_half_precision_training():
    encoder, x_BCHW = build_sized(input_size=48), torch.rand(2, 3, 32, 32)
    full_BD = encoder(x_BCHW).embedding_BD
    with torch.autocast("cpu", dtype=torch.bfloat16):
        # As Fabric hands it to a network that trains in mixed precision.
        half_BD = encoder(x_BCHW.bfloat16()).embedding_BD
    assert torch.allclose(half_BD.float(), full_BD, atol=0.1 * full_BD.abs().max())


def test_gradients_reach_the_images_through_the_resizing():
    x_BCHW = torch.rand(1, 3, 32, 32, requires_grad=True)
    build_sized(input_size=48)(x_BCHW).embedding_BD.sum().backward()
    assert x_BCHW.grad.abs().sum() > 0


def test_maps_and_macs_are_those_of_the_resized_images():
    resizing, plain = build_sized(32, input_size=64), build_sized(64)
    for encoder in (resizing, plain):
        encoder.set_taps(("layer1", "before_relu:layer2"))
    assert resizing.map_shapes() == plain.map_shapes()
    assert resizing.map_shapes()["layer1"] == (8, 64, 64)
    assert resizing.tap_names == plain.tap_names
    assert count_macs(resizing) == count_macs(plain) > 3 * count_macs(build_sized(32))


def test_counting_macs_leaves_mode_and_gradients_as_they_were():
    encoder = build_sized().train()
    encoder.net.conv1.weight.requires_grad_(False)
    before = {name: p.requires_grad for name, p in encoder.named_parameters()}
    count_macs(encoder)
    assert {name: p.requires_grad for name, p in encoder.named_parameters()} == before
    assert encoder.training and set(before.values()) == {True, False}


@torch.no_grad()
def test_a_closing_relu_is_found_at_the_size_inside():
    encoder = build_sized(8, name="resnet10t", input_size=32)
    encoder.set_taps(("layer2", "before_relu:layer2"))
    maps = encoder(torch.rand(1, 3, 8, 8)).maps
    assert torch.equal(maps["before_relu:layer2"].relu(), maps["layer2"])


@torch.no_grad()
def test_a_saved_encoder_resizes_again(tmp_path):
    encoder, x_BCHW = build_sized(input_size=48), torch.rand(2, 3, 32, 32)
    save_encoder(encoder, tmp_path)
    assert torch.equal(load(tmp_path)(x_BCHW).embedding_BD, encoder(x_BCHW).embedding_BD)
    assert load(tmp_path).spec.input_size == 48


def test_what_timm_can_open_says_which_size_it_expects(tmp_path):
    save_encoder(build_sized(stem="native", input_size=48), tmp_path)
    description = json.loads((tmp_path / "model.json").read_text())
    assert description["timm"]["model_name"] == "resnet10t"
    assert "48 pixels" in description["timm_note"]


def test_a_copy_resizes_too():
    encoder, x_BCHW = build_sized(input_size=48), torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        again = copy.deepcopy(encoder)(x_BCHW)
        assert torch.equal(again.embedding_BD, encoder(x_BCHW).embedding_BD)


def test_the_stem_suits_the_size_inside():
    assert build_sized(32, name="resnet10t", input_size=96).spec.stem == "native"
    assert build_sized(32, name="resnet10t", input_size=64).spec.stem == "small"


@torch.no_grad()
def test_a_vit_of_a_fixed_size_takes_other_images_through_the_input_size():
    encoder = build_sized(32, name="vit_tiny_patch16_224", args=TINY_VIT, input_size=48)
    encoder.set_taps(("blocks.1", "attention:blocks.0"))
    assert encoder(torch.rand(2, 3, 20, 20)).embedding_BD.shape == (2, 32)
    assert encoder.map_shapes() == {"blocks.1": (32, 3, 3), "attention:blocks.0": (2, 1, 10)}


def test_a_vit_of_a_fixed_size_names_the_input_size_as_a_remedy():
    with pytest.raises(UserError, match=r"the data is 32x32: .*encoder\.input_size=48") as caught:
        build_sized(32, name="vit_tiny_patch16_224", args=TINY_VIT)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"encoder\.input_size is 64x64: .*encoder\.input_size=48"):
        build_sized(32, name="vit_tiny_patch16_224", args=TINY_VIT, input_size=64)


@torch.no_grad()
def test_a_vit_of_any_size_needs_no_resizing():
    args = {**TINY_VIT, "dynamic_img_size": True}
    encoder = build_sized(32, name="vit_tiny_patch16_224", args=args)
    assert encoder(torch.rand(1, 3, 32, 32)).embedding_BD.shape == (1, 32)


@torch.no_grad()
@pytest.mark.parametrize("padding, side", [(0, 30), (1, 32), (2, 34)])
def test_padding_of_the_small_stem_sets_the_size_of_the_maps(padding, side, tmp_path):
    encoder = build_sized(stem="small", stem_padding=padding)
    encoder.set_taps(("layer1",))
    assert encoder.map_shapes() == {"layer1": (8, side, side)}
    save_encoder(encoder, tmp_path)
    assert load(tmp_path).net.conv1.padding == (padding, padding)


def test_a_spec_without_the_later_fields_is_written_as_it_always_was():
    """Initial weights and hashes of stages depend on what is written."""
    spec = EncoderSpec(name="resnet18", image_size=32)
    keys = ["name", "args", "stem", "stem_stride", "image_size", "mean", "std"]
    assert list(spec.model_dump(mode="json")) == list(json.loads(spec.model_dump_json())) == keys
    assert EncoderSpec(**spec.model_dump()) == spec


def test_a_spec_with_the_later_fields_comes_back():
    spec = EncoderSpec(
        name="x", image_size=32, input_size=64, stem_padding=2, library="torchvision"
    )
    assert EncoderSpec(**json.loads(spec.model_dump_json())) == spec
    assert (spec.side, EncoderSpec(name="x", image_size=32).side) == (64, 32)


@pytest.mark.parametrize("refuses_all", [False, True])
def test_images_that_a_network_refuses_are_resized_to_those_it_knows(make_encoder, refuses_all):
    encoder = make_encoder()

    def map_shapes():
        if refuses_all or encoder.spec.input_size is None:
            raise RuntimeError("too small")

    encoder.map_shapes = map_shapes
    if refuses_all:
        with pytest.raises(
            UserError, match=r"images of 32 pixels .*too small.* trained at; choose another netw"
        ):
            fit_size(encoder, 32)
    else:
        fit_size(encoder, 32)
        assert encoder.spec.input_size == 32
