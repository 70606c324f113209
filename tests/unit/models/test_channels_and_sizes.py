"""Networks for images of any number of channels, and for images that are no squares."""

import pytest
import torch

from ssdistill.errors import UserError
from ssdistill.models.backbones import build_encoder
from ssdistill.models.spec import EncoderSettings, EncoderSpec
from ssdistill.models.torchvision_net import create_torchvision_net

MEAN, STD = (0.1, 0.2, 0.3, 0.4, 0.5), (0.2, 0.2, 0.2, 0.2, 0.25)
SMALL_VIT = {"embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": 8}


def build(name="resnet18", size=(32, 16), mean=MEAN, std=STD, **settings):
    if name == "resnet18":
        settings.setdefault("args", {"channels": [4, 4, 8, 8]})
    return build_encoder(EncoderSettings(name=name, **settings), size, mean, std).eval()


@pytest.mark.parametrize("channels", [1, 2, 5, 13])
def test_a_network_takes_as_many_channels_as_there_are_statistics(channels):
    encoder = build(mean=(0.5,) * channels, std=(0.25,) * channels)
    x_BCHW = encoder.example(2)
    assert x_BCHW.shape == (2, channels, 32, 16) and encoder.spec.in_chans == channels
    assert encoder.net.conv1.in_channels == channels
    assert encoder(x_BCHW).embedding_BD.shape == (2, 8)


def test_each_channel_is_normalized_by_its_own_statistics():
    encoder = build()
    x_BCHW = torch.tensor(MEAN).view(1, 5, 1, 1).expand(1, 5, 32, 16)
    seen = []
    encoder.net.conv1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    encoder(x_BCHW + torch.tensor(STD).view(1, 5, 1, 1))
    assert torch.allclose(seen[0], torch.ones(1, 5, 32, 16), atol=1e-6)


def test_maps_of_an_image_that_is_no_square_are_none_either():
    encoder = build()
    encoder.set_taps(("layer1", "before_relu:layer4"))
    assert encoder.map_shapes() == {"layer1": (4, 32, 16), "before_relu:layer4": (8, 4, 2)}
    maps = encoder(encoder.example(1)).maps
    assert maps["before_relu:layer4"].shape == (1, 8, 4, 2)


def test_a_transformer_takes_height_and_width():
    encoder = build("vit_tiny_patch16_224", args={"img_size": [32, 16], **SMALL_VIT})
    assert encoder.net.patch_embed.grid_size == (4, 2)
    assert encoder(encoder.example(2)).embedding_BD.shape == (2, 24)
    remedy = (
        r"takes 16x32 images, but the data is 32x16: set encoder.args.img_size=\[32,16\], "
        r"encoder.input_size=\[16,32\] or data.image_size=\[16,32\]"
    )
    with pytest.raises(UserError, match=remedy):
        build("vit_tiny_patch16_224", args={"img_size": [16, 32], **SMALL_VIT})


def test_images_are_resized_inside_to_height_and_width():
    encoder = build(input_size=[16, 48])
    assert (encoder.spec.size, encoder.spec.side) == ((16, 48), 48)
    encoder.set_taps(("layer1",))
    assert encoder.map_shapes() == {"layer1": (4, 16, 48)}


def test_a_square_written_with_two_sides_is_the_same_square():
    settings = EncoderSettings(input_size=[48, 48])
    assert settings == EncoderSettings(input_size=48)
    assert EncoderSpec(name="x", image_size=(32, 32)).image_size == 32


def test_the_description_of_a_color_square_encoder_is_what_it_was():
    spec = EncoderSpec(name="resnet18", image_size=32, mean=(0.1, 0.2, 0.3), std=(1, 1, 1))
    assert spec.model_dump_json() == (
        '{"name":"resnet18","args":{},"stem":"native","stem_stride":1,"image_size":32,'
        '"mean":[0.1,0.2,0.3],"std":[1.0,1.0,1.0]}'
    )


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (torch.zeros(2, 3, 32, 16), "(B, 5, H, W), got (2, 3, 32, 16): pass the 5 channels"),
        (torch.zeros(2, 32, 16, 5), "x.permute(0, 3, 1, 2)"),
        (torch.zeros(2, 1, 32, 16), "pass the 5 channels it was trained on, in their order"),
        (torch.zeros(5, 32, 16), "add the batch axis with x[None]"),
        ([1], "takes a torch.Tensor (B, 5, H, W), got list"),
    ],
)
def test_images_of_other_channels_are_refused_with_a_remedy(x, words):
    encoder = build()
    encoder.checks_inputs = True
    with pytest.raises(UserError) as caught:
        encoder(x)
    assert words in str(caught.value)


def test_a_size_that_a_network_cannot_take_is_told_with_its_own():
    encoder = build("vit_tiny_patch16_224", args={"img_size": [32, 16], **SMALL_VIT})
    encoder.checks_inputs = True
    with pytest.raises(UserError, match=r"cannot take images of 16x32 pixels .*to 32x16"):
        encoder(torch.zeros(1, 5, 16, 32))


def test_the_number_of_channels_is_not_an_argument():
    assert build(args={"channels": [4, 4, 8, 8], "in_chans": 5}).spec.in_chans == 5
    with pytest.raises(UserError, match=r"in_chans=4: the images have 5 channels \(data.channels"):
        build(args={"in_chans": 4})


@pytest.mark.parametrize(("name", "first"), [
    ("resnet18", "conv1"), ("googlenet", "conv1.conv"), ("vit_b_32", "conv_proj"),
])  # fmt: skip
def test_networks_of_torchvision_take_other_channels(name, first):
    net = create_torchvision_net(name, {}, 4)
    assert net.net.get_submodule(first).weight.shape[1] == 4
    side = 224 if name == "vit_b_32" else 64
    with torch.no_grad():
        assert net.eval()(torch.rand(1, 4, side, side)).shape == (1, net.num_features)


def test_torchvisions_weights_are_adapted_as_timms_are():
    torch.manual_seed(0)
    color = create_torchvision_net("resnet18", {})
    torch.manual_seed(0)
    gray = create_torchvision_net("resnet18", {}, 1)
    assert torch.allclose(gray.net.conv1.weight, color.net.conv1.weight.sum(1, keepdim=True))
