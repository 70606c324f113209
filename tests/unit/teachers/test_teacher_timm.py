"""Teachers from timm, with random weights in files."""

import json
import os
import types

import pytest
import safetensors.torch
import timm
import torch
import torch.nn.functional as F
from huggingface_hub.errors import LocalEntryNotFoundError
from timm.layers import resample_abs_pos_embed

from ssdistill.artifacts.artifact import load, save_encoder
from ssdistill.errors import UserError
from ssdistill.settings.registry import TEACHERS
from ssdistill.teachers import ImageSpec
from ssdistill.teachers.timm_model import TimmModel

TINY = {"depth": 1, "embed_dim": 32, "num_heads": 2}
RESNET = {"layers": (1, 1, 1, 0), "channels": (8, 16, 16, 16), "stem_width": 8}
CLIP, DINOV2 = "vit_base_patch16_clip_224.openai", "vit_small_patch14_dinov2.lvd142m"


def make_images(size=64):
    return ImageSpec(size, (0.1, 0.2, 0.3), (0.3, 0.2, 0.1))


def timms(name, **args):
    """timm's network at random weights that no initialization gives."""
    torch.manual_seed(0)
    net = timm.create_model(name, **args).eval()
    for value in net.state_dict().values():
        if value.is_floating_point():
            value.add_(torch.rand_like(value), alpha=0.1)
    return net


def stored(net, path):
    safetensors.torch.save_file(net.state_dict(), path)
    return str(path)


@torch.no_grad()
def assert_sees_like(encoder, net, side, given=64):
    x_BCHW = torch.rand(2, 3, given, given)
    inside = F.interpolate(x_BCHW, (side, side), mode="bicubic", antialias=True).clamp(0, 1)
    config = net.pretrained_cfg
    mean, std = (torch.tensor(config[k]).view(1, 3, 1, 1) for k in ("mean", "std"))
    features = net.forward_features((inside - mean) / std)
    expected = net.forward_head(features, pre_logits=True)
    found = encoder(x_BCHW).embedding_BD
    assert found.shape == (2, encoder.embed_dim)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize(
    "name, side, taps",
    [
        (CLIP, 224, ["blocks.0", "attention:blocks.0"]),
        ("vit_base_patch16_siglip_224", 224, ["blocks.0"]),
        (DINOV2, 518, ["blocks.0", "attention:blocks.0"]),
        ("vit_small_patch16_dinov3.lvd1689m", 256, ["blocks.0", "attention:blocks.0"]),
        ("vit_base_patch16_224.mae", 224, ["blocks.0", "attention:blocks.0"]),
    ],
)
def test_a_transformer_sees_small_images_at_the_size_of_its_weights(name, side, taps, tmp_path):
    net = timms(name, **TINY)
    teacher = TimmModel(name=name, args=TINY, weights=stored(net, tmp_path / "w.safetensors"))
    encoder, notices = teacher.load(make_images())
    assert not encoder.training and encoder.embed_dim == 32
    assert (encoder.spec.image_size, encoder.spec.input_size) == (64, side)
    assert encoder.spec.mean == pytest.approx(net.pretrained_cfg["mean"])
    assert len(notices) == 1 and f"from 64 to {side} pixels internally" in notices[0]
    assert_sees_like(encoder, net, side)
    assert encoder.tap_names == [*taps, "final:blocks.0", "final:patches"]
    encoder.set_taps(tuple(taps))
    patches = side // int(name.split("patch")[1][:2])
    assert encoder.map_shapes()["blocks.0"] == (32, patches, patches)
    save_encoder(encoder, tmp_path / "model")
    assert_sees_like(load(tmp_path / "model"), net, side)


def test_position_embeddings_are_resampled_to_another_size(tmp_path):
    net = timms(DINOV2, **TINY)
    path = stored(net, tmp_path / "w.safetensors")
    encoder, _ = TimmModel(name=DINOV2, args=TINY, weights=path, input_size=112).load(make_images())
    assert encoder.spec.args["img_size"] == encoder.spec.input_size == 112
    expected = resample_abs_pos_embed(net.pos_embed, [8, 8], num_prefix_tokens=1)
    assert torch.allclose(encoder.net.pos_embed, expected)
    assert encoder(torch.rand(1, 3, 64, 64)).embedding_BD.shape == (1, 32)


@pytest.mark.parametrize(
    "wanted, given, side", [(None, 64, 176), (None, 256, None), (64, 64, 64), (96, 64, 96)]
)
def test_a_convolutional_network_enlarges_small_images_unless_told(wanted, given, side, tmp_path):
    net = timms("resnet10t", **RESNET)
    path = stored(net, tmp_path / "w.safetensors")
    teacher = TimmModel(name="resnet10t", args=RESNET, weights=path, input_size=wanted)
    encoder, notices = teacher.load(make_images(given))
    assert encoder.spec.input_size == side and encoder.spec.stem == "native"
    assert_sees_like(encoder, net, side or given, given)
    assert bool(notices) == (side not in (None, given))


def test_the_notice_says_what_enlarging_costs(tmp_path):
    path = stored(timms("resnet10t", **RESNET), tmp_path / "w.safetensors")
    teacher = TimmModel(name="resnet10t", args=RESNET, weights=path, input_size=128)
    (notice,) = teacher.load(make_images(32))[1]
    assert notice.startswith("resnet10t resizes images from 32 to 128 pixels internally: ")
    assert notice.endswith(" M MACs per image, 16 times those at 32 pixels")


def as_dinov2(net):
    return {**net.state_dict(), "mask_token": torch.zeros(1, 32)}


def as_mae(net):
    return {"model": net.state_dict(), "optimizer": {}}


def as_clip(net):
    names = {
        "patch_embed.proj": "conv1",
        "pos_embed": "positional_embedding",
        "blocks.": "transformer.resblocks.",
        "norm_pre": "ln_pre",
        ".norm": ".ln_",
        "qkv.": "in_proj_",
        "attn.proj": "attn.out_proj",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
    }
    state = {"logit_scale": torch.ones(()), "transformer.resblocks.0.ln_1.bias": torch.ones(3)}
    for key, value in net.state_dict().items():
        if key.startswith("head"):
            continue
        if key in ("cls_token", "pos_embed"):
            value = value.squeeze(0)
        key = "ln_post" + key[4:] if key.startswith("norm.") else key
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        state["visual." + key.replace("cls_token", "class_embedding")] = value
    state["visual.class_embedding"] = state["visual.class_embedding"].squeeze(0)
    return {**state, "visual.proj": torch.rand(32, 512)}


@pytest.mark.parametrize(
    "name, written",
    [(DINOV2, as_dinov2), ("vit_base_patch16_224.mae", as_mae), (CLIP, as_clip)],
)
def test_files_in_the_authors_own_format_are_converted(name, written, tmp_path):
    args = {**TINY, "img_size": 56 if name == DINOV2 else 64}
    net = timms(name, **args)
    torch.save(written(net), tmp_path / "w.pth")
    encoder, _ = TimmModel(name=name, args=args, weights=str(tmp_path / "w.pth")).load(
        make_images()
    )
    assert_sees_like(encoder, net, args["img_size"])


def test_a_classifier_in_the_file_is_left_out(tmp_path):
    net = timms("resnet10t", num_classes=7, **RESNET)
    path = stored(net, tmp_path / "w.safetensors")
    encoder, _ = TimmModel(name="resnet10t", args=RESNET, weights=path).load(make_images())
    assert not any(key.startswith("fc") for key in encoder.net.state_dict())
    assert_sees_like(encoder, net, 176)


@pytest.mark.parametrize("name, args", [("resnet10t", RESNET), (DINOV2, TINY)])
def test_weights_with_other_keys_are_refused_by_name(name, args, tmp_path, capfd):
    net = timms(name, **args)
    state = net.state_dict()
    first = next(key for key in state if key.endswith("bias"))
    state["elsewhere.weight"] = state.pop(first)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(UserError) as caught:
        TimmModel(name=name, args=args, weights=str(tmp_path / "w.pth")).load(make_images())
    message = str(caught.value)
    assert message.startswith("teacher.weights: ") and "\n" not in message
    assert f"lacks 1 keys ({first})" in message
    assert "has unknown 1 keys (elsewhere.weight)" in message
    assert capfd.readouterr().err == ""


def test_weights_of_other_shapes_are_refused_in_one_line(tmp_path):
    path = stored(timms("resnet10t", **RESNET), tmp_path / "w.safetensors")
    wider = {**RESNET, "channels": (8, 16, 32, 32)}
    with pytest.raises(UserError, match=r"teacher\.weights: .*size mismatch") as caught:
        TimmModel(name="resnet10t", args=wider, weights=path).load(make_images())
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_a_file_that_would_run_code_is_refused(tmp_path):
    torch.save({"model": types.SimpleNamespace()}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"teacher\.weights: .*unpickling"):
        TimmModel(name="resnet18", weights=str(tmp_path / "w.pth")).load(make_images())


def test_a_missing_file_is_named_before_anything_is_built():
    teacher = TimmModel(name="resnet18", weights="nowhere.pth")
    for ask in (teacher.identity, lambda: teacher.load(make_images())):
        with pytest.raises(UserError, match=r"teacher\.weights=nowhere\.pth: no such file or f"):
            ask()


def test_identity_is_the_file_or_the_tag(tmp_path):
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "b").write_bytes(b"two")
    a, b = (TimmModel(name="resnet18", weights=str(tmp_path / n)).identity() for n in "ab")
    assert a != b and len(a["sha256"]) == 64
    names = ["resnet18", "resnet18.a1_in1k", "resnet18.tv_in1k", "hf-hub:timm/resnet18.a1_in1k"]
    default, a1, tv, hub = (TimmModel(name=name).identity() for name in names)
    assert default == a1 and a1["tag"] == "a1_in1k" and a1["hub"] == "timm/resnet18.a1_in1k"
    assert tv != a1 and hub == {"hub": "timm/resnet18.a1_in1k"}


@pytest.mark.parametrize(
    "name, complaint",
    [
        ("resnet18x", r"timm has no model 'resnet18x' \(did you mean 'resnet18"),
        ("resnet18.a1_in", r"timm has no pretrained weights 'resnet18.a1_in' \(did you mean"),
        ("timm/resnet18", "neither a timm model nor hf-hub:owner/model"),
        ("vit_small_patch16_36x1_224", r"no pretrained weights for .*set teacher\.weights=FILE"),
    ],
)
def test_a_wrong_name_is_refused(name, complaint):
    teacher = TimmModel(name=name)
    for ask in (teacher.identity, lambda: teacher.load(make_images())):
        with pytest.raises(UserError, match=rf"teacher\.name: .*{complaint}"):
            ask()


def test_a_wrong_argument_is_named(tmp_path):
    path = stored(timms("resnet10t", **RESNET), tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"teacher\.args of 'resnet10t': .*'lyers'"):
        TimmModel(name="resnet10t", args={"lyers": 1}, weights=path).load(make_images())


def test_two_sizes_that_differ_are_refused(tmp_path):
    path = stored(timms(DINOV2, **TINY), tmp_path / "w.safetensors")
    teacher = TimmModel(name=DINOV2, args={"img_size": 28}, weights=path, input_size=56)
    with pytest.raises(UserError, match=r"teacher\.input_size=56 and teacher\.args\.img_size=28"):
        teacher.load(make_images())


@pytest.mark.parametrize("name", ["resnet18", "hf-hub:timm/resnet18.a1_in1k"])
def test_without_a_connection_a_file_is_suggested(name, monkeypatch):
    def fail(*args, **kwargs):
        raise LocalEntryNotFoundError("cannot find it.\nCheck the connection.")

    monkeypatch.setattr(timm.models._hub, "hf_hub_download", fail)
    with pytest.raises(UserError) as caught:
        TimmModel(name=name).load(make_images())
    message = str(caught.value)
    assert message.startswith("teacher.name: ") and name in message and "\n" not in message
    assert "cannot be downloaded (LocalEntryNotFoundError: cannot find it.)" in message


def test_weights_from_the_hub_come_with_their_description(monkeypatch, tmp_path):
    """What the hub holds is a folder here; nothing of it is needed to open the artifact."""
    net = timms("vit_tiny_patch16_224", img_size=32, patch_size=8, **TINY)
    stored(net, tmp_path / "model.safetensors")
    description = {
        "architecture": "vit_tiny_patch16_224",
        "model_args": {"img_size": 32, "patch_size": 8, **TINY},
        "pretrained_cfg": {
            "input_size": [3, 32, 32],
            "fixed_input_size": True,
            "mean": [0.4, 0.4, 0.4],
            "std": [0.3, 0.3, 0.3],
            "num_classes": 1000,
            "classifier": "head",
            "first_conv": "patch_embed.proj",
        },
    }
    (tmp_path / "config.json").write_text(json.dumps(description))
    monkeypatch.setattr(
        timm.models._hub,
        "hf_hub_download",
        lambda repo_id, filename, **where: str(tmp_path / filename),
    )
    encoder, _ = TimmModel(name="hf-hub:someone/vit").load(make_images())
    net.pretrained_cfg = description["pretrained_cfg"]
    assert_sees_like(encoder, net, 32)
    other = timms("vit_tiny_patch16_224", **description["model_args"])
    other.cls_token.data.normal_()
    other.pretrained_cfg = net.pretrained_cfg
    path = stored(other, tmp_path / "other.safetensors")
    read, _ = TimmModel(name="hf-hub:someone/vit", weights=path).load(make_images())
    assert_sees_like(read, other, 32)
    save_encoder(encoder, tmp_path / "model")
    monkeypatch.undo()
    assert_sees_like(load(tmp_path / "model"), net, 32)


def test_the_registry_knows_it():
    given = {"kind": "timm", "name": "resnet18", "input_size": 64}
    teacher = TEACHERS.build(TEACHERS.schema("timm").model_validate(given))
    assert (teacher.name, teacher.args, teacher.input_size) == ("resnet18", {}, 64)


class Evil:
    def __reduce__(self):
        return (os.mkdir, ("made_by_a_pickle",))


def test_a_file_that_would_run_something_is_refused_by_every_version(tmp_path, monkeypatch):
    """Up to 1.0.20 at least, timm unpickled whatever it was given."""
    monkeypatch.chdir(tmp_path)
    torch.save({"x": Evil()}, "evil.pth")
    read = timm.models._builder.load_state_dict
    monkeypatch.setattr(
        timm.models._builder, "load_state_dict", lambda path: read(path, weights_only=False)
    )
    with pytest.raises(UserError, match=r"evil.pth"):
        TimmModel(name="resnet18", weights="evil.pth").load(make_images())
    assert not (tmp_path / "made_by_a_pickle").exists()
