import pytest
import timm
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from torch import nn

from ssdistill.errors import UserError
from ssdistill.models.backbones import EncoderSettings, build_encoder, encoder_from_spec

SMALL_ARGS = {
    "layers": (1, 1, 1, 0),
    "channels": (16, 32, 64, 64),
    "stem_type": "deep",
    "stem_width": 8,
}


def build_small(size=16, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), **settings):
    settings = {"name": "resnet10t", "args": SMALL_ARGS, **settings}
    return build_encoder(EncoderSettings(**settings), size, mean, std).eval()


def first_convolution(net):
    return next(m for m in net.modules() if isinstance(m, nn.Conv2d))


@pytest.mark.parametrize("stride", [1, 2])
def test_a_small_stem_is_one_3x3_convolution_without_a_max_pool(stride):
    net = build_small(stem="small", stem_stride=stride).net
    assert isinstance(net.conv1, nn.Conv2d)
    assert (net.conv1.kernel_size, net.conv1.stride) == ((3, 3), (stride, stride))
    assert net.conv1.padding == (1, 1)
    assert not any(isinstance(m, nn.MaxPool2d) for m in net.modules())
    with torch.no_grad():
        stem_BCHW = net.maxpool(net.act1(net.bn1(net.conv1(torch.zeros(1, 3, 16, 16)))))
    assert stem_BCHW.shape[2:] == (16 // stride, 16 // stride)


def test_a_native_stem_is_timms_own():
    ours = build_small(stem="native").net.state_dict()
    timms = timm.create_model("resnet10t", num_classes=0, **SMALL_ARGS).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in timms.items()}
    assert isinstance(build_small(stem="native").net.maxpool, nn.MaxPool2d)


@pytest.mark.parametrize(
    "size, name, stem",
    [
        (64, "resnet10t", "small"),
        (65, "resnet10t", "native"),
        (32, "mobilenetv3_small_050", "small"),
        (32, "convnext_atto", "native"),
    ],
)
def test_auto_takes_the_small_stem_for_small_images_where_one_is_known(size, name, stem):
    encoder = build_small(size, name=name, args=SMALL_ARGS if name == "resnet10t" else {})
    assert encoder.spec.stem == stem
    native = first_convolution(timm.create_model(name, num_classes=0, **encoder.spec.args))
    changed = first_convolution(encoder.net).stride != native.stride
    assert changed == (stem == "small")


def test_a_small_stem_is_refused_where_none_is_known():
    with pytest.raises(
        UserError, match="stem=small is not supported for ConvNeXt; use stem=native"
    ):
        build_small(32, name="convnext_atto", args={}, stem="small")


def test_images_are_normalized_inside():
    torch.manual_seed(0)
    encoder = build_small(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.125))
    x_BCHW = torch.rand(2, 3, 16, 16)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.1, 0.2, 0.3), (0.5, 0.25, 0.125)))
    with torch.no_grad():
        expected = encoder.net((x_BCHW - mean) / std)
        assert torch.allclose(encoder(x_BCHW).embedding_BD, expected, atol=1e-6)
        assert not torch.allclose(encoder.net(x_BCHW), expected, atol=1e-3)


def test_statistics_are_no_part_of_the_weights():
    assert not any(key in ("mean", "std") for key in build_small().state_dict())


@pytest.mark.parametrize(
    "name, args, dim",
    [
        ("resnet10t", SMALL_ARGS, 64),
        ("mobilenetv3_small_050", {}, 1024),
        ("vit_tiny_patch16_224", {"img_size": 32, "depth": 1}, 192),
    ],
)
def test_embed_dim_is_the_width_of_the_embedding(name, args, dim):
    encoder = build_small(32, name=name, args=args)
    with torch.no_grad():
        embedding_BD = encoder(torch.rand(2, 3, 32, 32)).embedding_BD
    assert encoder.embed_dim == dim
    assert embedding_BD.shape == (2, dim)


@pytest.mark.parametrize("taps", [("layer1", "layer3"), ("layer3", "layer1"), ("layer2",)])
def test_maps_come_by_name_whatever_the_order_of_the_taps(taps):
    encoder = build_small()
    encoder.set_taps(taps)
    shapes = {"layer1": (16, 16, 16), "layer2": (32, 8, 8), "layer3": (64, 4, 4)}
    expected = {name: shapes[name] for name in taps}
    with torch.no_grad():
        maps = encoder(torch.rand(2, 3, 16, 16)).maps
    assert {name: tuple(m.shape[1:]) for name, m in maps.items()} == expected
    assert encoder.map_shapes() == expected


def test_tapping_leaves_the_embedding_as_it_was():
    encoder, x_BCHW = build_small(), torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        plain = encoder(x_BCHW).embedding_BD
        encoder.set_taps(("layer1",))
        tapped = encoder(x_BCHW).embedding_BD
    assert torch.allclose(plain, tapped, atol=1e-6)


def test_asking_for_map_shapes_changes_no_mode_and_no_statistic():
    encoder = build_small().train()
    encoder.set_taps(("layer1",))
    before = encoder.net.bn1.running_mean.clone()
    encoder.map_shapes()
    assert encoder.training
    assert torch.equal(encoder.net.bn1.running_mean, before)


def test_an_unknown_tap_names_the_nearest():
    with pytest.raises(UserError, match=r"no feature map 'layr2' \(did you mean 'layer2'\?\)"):
        build_small().set_taps(("layr2",))


def test_an_unknown_name_names_timms_nearest():
    with pytest.raises(UserError, match=r"timm has no model 'resnet18x' \(did you mean 'resnet18"):
        build_small(name="resnet18x", args={})


def test_an_unknown_argument_is_named():
    with pytest.raises(UserError, match=r"encoder\.args of 'resnet10t': .*'lyers'"):
        build_small(args={"lyers": (1, 1, 1, 0)})


def test_a_vit_of_another_size_says_every_way_out():
    with pytest.raises(UserError) as caught:
        build_small(32, name="vit_tiny_patch16_224", args={"depth": 1})
    message = str(caught.value)
    assert "takes 224x224 images, but the data is 32x32" in message
    remedies = ("encoder.args.img_size=32", "encoder.input_size=224", "data.image_size=224")
    assert all(remedy in message for remedy in remedies)


def test_nothing_is_downloaded_unless_asked(monkeypatch):
    asked = []
    create = timm.create_model

    def watched(name, pretrained=False, **args):
        asked.append(pretrained)
        return create(name, pretrained=False, **args)

    monkeypatch.setattr(timm, "create_model", watched)
    build_small()
    assert EncoderSettings().pretrained is False
    encoder = build_small(args={}, pretrained=True, stem="native")
    assert asked == [False, True]
    assert encoder.spec.mean == pytest.approx((0.485, 0.456, 0.406))


def test_an_unknown_pretrained_name_is_refused_like_any_other():
    with pytest.raises(UserError, match="timm has no model"):
        build_small(name="resnet18x", args={}, pretrained=True)


@pytest.mark.parametrize("pretrained", [False, True])
def test_an_unknown_tag_of_weights_names_the_nearest(pretrained):
    with pytest.raises(UserError, match=r"'resnet18\.a1_in' \(did you mean 'resnet18\.a1_in1k'"):
        build_small(name="resnet18.a1_in", args={}, pretrained=pretrained)


def test_a_name_with_a_dot_and_no_tag_is_unknown():
    with pytest.raises(UserError, match=r"timm has no model 'resnet18\.' \(did you mean"):
        build_small(name="resnet18.", args={})


def test_pretrained_weights_that_nobody_published_are_refused():
    with pytest.raises(UserError, match="timm has no weights for 'vit_small_patch16_36x1_224'"):
        build_small(name="vit_small_patch16_36x1_224", args={}, pretrained=True)


def test_a_failed_download_is_one_line(monkeypatch):
    def fail(*args, **kwargs):
        raise LocalEntryNotFoundError("cannot find the file\nin the cache")

    monkeypatch.setattr(timm.models._hub, "hf_hub_download", fail)
    with pytest.raises(UserError) as caught:
        build_small(64, name="resnet18", args={}, pretrained=True)
    message = str(caught.value)
    assert "weights of 'resnet18' cannot be downloaded" in message and "\n" not in message
    assert "encoder.pretrained=false" in message


def test_a_spec_builds_the_same_network_again():
    encoder = build_small(mean=(0.1, 0.2, 0.3), stem_stride=2)
    again = encoder_from_spec(type(encoder.spec).model_validate(encoder.spec.model_dump()))
    again.net.load_state_dict(encoder.net.state_dict(), strict=True)
    x_BCHW = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(again.eval()(x_BCHW).embedding_BD, encoder(x_BCHW).embedding_BD)
