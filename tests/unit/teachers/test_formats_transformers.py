"""Transformer checkpoints of other projects, and SimCLR v2's, compute what the originals do."""

import dataclasses

import pytest
import timm
import torch
from lightly.models.modules import MaskedVisionTransformerTIMM
from torch import nn
from torchvision.models.vision_transformer import VisionTransformer

from ssdistill.errors import UserError
from ssdistill.models.spec import IMAGENET_MEAN, IMAGENET_STD, EncoderSettings
from ssdistill.teachers import ImageSpec
from ssdistill.teachers.checkpoint import Checkpoint

IMAGE_SPEC = ImageSpec(image_size=16, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
TINY = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 4, "num_heads": 2}


def tiny(name="vit_tiny_patch16_224", **args):
    """(network, settings that describe it), with every tensor away from its initial value."""
    args = TINY | args
    net = timm.create_model(name, num_classes=0, **args).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return net, EncoderSettings(name=name, args=args)


def prefixed(prefix, state):
    return {f"{prefix}{name}": value for name, value in state.items()}


def load(saved, tmp_path, side=16, **settings):
    torch.save(saved, tmp_path / "weights.pth")
    teacher = Checkpoint(path=str(tmp_path / "weights.pth"), **settings)
    return teacher.load(dataclasses.replace(IMAGE_SPEC, image_size=side))


@torch.no_grad()
def compare(encoder, net, project=None, mean=IMAGE_SPEC.mean, std=IMAGE_SPEC.std, side=16):
    x_BCHW = torch.rand(2, 3, side, side)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (mean, std))
    wanted_BD = net((x_BCHW - mean) / std)
    found_BD = encoder(x_BCHW).embedding_BD
    torch.testing.assert_close(found_BD, wanted_BD, rtol=1e-4, atol=1e-5)
    if project is not None:
        found_BP = encoder.projector(found_BD)
        torch.testing.assert_close(found_BP, project(wanted_BD), rtol=1e-4, atol=1e-5)


def dino_head(width=32):
    layers = nn.Linear(width, 24), nn.GELU(), nn.Linear(24, 24), nn.GELU(), nn.Linear(24, 8)
    mlp = nn.Sequential(*layers)
    last = {"last_layer.weight_g": torch.ones(16, 1), "last_layer.weight_v": torch.randn(16, 8)}
    return mlp, prefixed("mlp.", mlp.state_dict()) | last


@pytest.mark.parametrize(("branch", "whose"), [("auto", "teacher"), ("student", "student")])
def test_dino_has_two_networks_and_the_teacher_is_the_one_evaluated(branch, whose, tmp_path):
    nets, heads, saved = {}, {}, {"epoch": 1, "dino_loss": {"center": torch.zeros(1, 16)}}
    for name, wrapped in (("student", "module."), ("teacher", "")):
        nets[name], settings = tiny()
        heads[name], head = dino_head()
        state = prefixed("backbone.", nets[name].state_dict()) | prefixed("head.", head)
        saved[name] = prefixed(wrapped, state)
    encoder, notices = load(saved, tmp_path, encoder=settings, branch=branch)
    compare(encoder, nets[whose], lambda h: nn.functional.normalize(heads[whose](h), dim=-1))
    assert f"dino, {'online' if branch == 'student' else 'momentum'} network" in notices[0]
    assert "loaded projector 32-24-24-8" in notices[0]


def test_dinos_backbone_alone_is_read_with_imagenets_statistics(tmp_path):
    net, settings = tiny(img_size=80, patch_size=16)
    encoder, _ = load(net.state_dict(), tmp_path, format="dino", encoder=settings)
    assert encoder.spec.mean == IMAGENET_MEAN and encoder.spec.input_size == 80
    compare(encoder, net, mean=IMAGENET_MEAN, std=IMAGENET_STD, side=80)


def dinov2(registers):
    name = f"vit_small_patch14_{'reg4_' if registers else ''}dinov2"
    net, settings = tiny(name, img_size=28, patch_size=14)
    state = net.state_dict()
    if registers:
        place = torch.randn(1, 1, 32)
        state["register_tokens"] = state.pop("reg_token")
        state["pos_embed"] = torch.cat([place, state["pos_embed"]], 1)
        state["cls_token"] = state["cls_token"] - place
    state["mask_token"] = torch.randn(1, 32)
    chunked = {}
    for key, value in state.items():
        first, *rest = key.split(".")
        if first == "blocks":
            key = ".".join([first, str(int(rest[0]) // 2), *rest])
        chunked[key] = value
    return net, settings, chunked


@pytest.mark.parametrize("registers", [False, True])
def test_dinov2_in_chunks_of_blocks(registers, tmp_path):
    net, settings, state = dinov2(registers)
    mlp, head = dino_head()
    saved = prefixed("backbone.", state) | prefixed("dino_head.", head)
    saved = {"teacher": saved | prefixed("ibot_head.", head)}
    encoder, _ = load(saved, tmp_path, encoder=settings)
    compare(encoder, net, lambda h: nn.functional.normalize(mlp(h), dim=-1), side=28)


def test_moco_v3_has_its_projector_in_the_head(tmp_path):
    net, settings = tiny()
    head = nn.Sequential(
        nn.Linear(32, 24, bias=False), nn.BatchNorm1d(24), nn.ReLU(),
        nn.Linear(24, 24, bias=False), nn.BatchNorm1d(24), nn.ReLU(),
        nn.Linear(24, 8, bias=False), nn.BatchNorm1d(8, affine=False),
    ).eval()  # fmt: skip
    state = net.state_dict() | prefixed("head.", head.state_dict())
    saved = prefixed("module.base_encoder.", state) | prefixed("module.momentum_encoder.", state)
    encoder, _ = load({"state_dict": saved}, tmp_path, encoder=settings)
    compare(encoder, net, head)


@pytest.mark.parametrize("heads", [None, 6])
def test_moco_v3s_small_transformer_has_heads_that_timms_has_not(heads, tmp_path):
    net, settings = tiny("vit_small_patch16_224", embed_dim=384, num_heads=6, depth=1)
    args = {k: v for k, v in settings.args.items() if k != "num_heads" or heads}
    settings = settings.model_copy(update={"args": args})
    saved = {"state_dict": prefixed("module.base_encoder.", net.state_dict())}
    if heads:
        compare(load(saved, tmp_path, encoder=settings)[0], net)
    else:
        with pytest.raises(UserError, match=r"set teacher\.encoder\.args\.num_heads=12"):
            load(saved, tmp_path, encoder=settings)


def test_torchvisions_transformer(tmp_path):
    _, settings = tiny()
    net = VisionTransformer(16, 4, 4, 2, 32, 128, num_classes=10).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    encoder, notices = load(net.state_dict(), tmp_path, encoder=settings)
    net.heads = nn.Identity()
    compare(encoder, net)
    assert "ignored: heads (2)" in notices[0]


def test_lightlys_masked_transformer_has_timms_inside(tmp_path):
    net, settings = tiny()
    wrapped = MaskedVisionTransformerTIMM(vit=net)
    state = prefixed("student_backbone.", tiny()[0].state_dict())
    state |= prefixed("teacher_backbone.", wrapped.state_dict())
    encoder, notices = load({"state_dict": state}, tmp_path, encoder=settings)
    compare(encoder, net, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    assert "lightly, momentum network" in notices[0] and "mask_token (1)" in notices[0]


def test_mae_leaves_its_decoder_out(tmp_path):
    net, settings = tiny()
    decoder = {"mask_token": torch.randn(1, 1, 8), "decoder_embed.weight": torch.randn(8, 32)}
    encoder, notices = load({"model": net.state_dict() | decoder}, tmp_path, encoder=settings)
    compare(encoder, net)
    assert notices[0].startswith("timm, ") and "decoder_embed (1)" in notices[0]


def test_position_embeddings_of_another_size_are_resized_and_told(tmp_path):
    net, _ = tiny(img_size=32)
    _, settings = tiny(img_size=16)
    _, notices = load(net.state_dict(), tmp_path, encoder=settings)
    assert any("pos_embed from (1, 65, 32) to (1, 17, 32)" in notice for notice in notices)


def test_filters_of_another_patch_size_are_not_resized(tmp_path):
    net, _ = tiny(patch_size=8)
    _, settings = tiny(patch_size=4)
    with pytest.raises(UserError, match=r"'patch_embed.proj.weight' of shape \(32, 3, 8, 8\)"):
        load(net.state_dict(), tmp_path, encoder=settings)


def test_timm_converts_the_names_of_a_familys_own_authors(tmp_path):
    args = {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}
    net = timm.create_model("convnext_tiny", num_classes=0, **args).eval()
    names = {f"stages.{stage}.downsample": f"downsample_layers.{stage}" for stage in (1, 2, 3)}
    names |= {"stem": "downsample_layers.0", "head.norm": "norm", ".blocks.": ".",
              "conv_dw": "dwconv", "mlp.fc": "pwconv"}  # fmt: skip
    state = {}
    for key, value in net.state_dict().items():
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        state[key] = value
    settings = EncoderSettings(name="convnext_tiny", args=args)
    encoder, _ = load({"model": state}, tmp_path, side=32, encoder=settings)
    compare(encoder, net, mean=IMAGENET_MEAN, std=IMAGENET_STD, side=32)


class Bottleneck(nn.Module):
    """SimCLR v2's block, its layers named as in its conversion from TensorFlow."""

    def __init__(self, inputs, width, stride):
        super().__init__()
        self.projection = nn.Module()
        self.projection.shortcut = nn.Conv2d(inputs, width * 4, 1, stride, bias=False)
        self.projection.bn = self.norm(width * 4, nn.Identity())
        self.net = nn.Sequential(
            nn.Conv2d(inputs, width, 1, bias=False), self.norm(width, nn.ReLU()),
            nn.Conv2d(width, width, 3, stride, 1, bias=False), self.norm(width, nn.ReLU()),
            nn.Conv2d(width, width * 4, 1, bias=False), self.norm(width * 4, nn.Identity()),
        )  # fmt: skip

    @staticmethod
    def norm(width, activation):
        return nn.Sequential(nn.BatchNorm2d(width), activation)

    def forward(self, x):
        return torch.relu(self.projection.bn(self.projection.shortcut(x)) + self.net(x))


def stage(inputs, width, stride):
    blocks = nn.Module()
    blocks.blocks = nn.ModuleList([Bottleneck(inputs, width, stride)])
    blocks.forward = lambda x: blocks.blocks[0](x)
    return blocks


def test_simclr_v2_as_converted_from_tensorflow(tmp_path):
    stem = nn.Sequential(nn.Conv2d(3, 64, 7, 2, 3, bias=False),
                         Bottleneck.norm(64, nn.ReLU()), nn.MaxPool2d(3, 2, 1))  # fmt: skip
    stages = stage(64, 64, 1), stage(256, 128, 2), stage(512, 256, 2), stage(1024, 512, 2)
    whole = nn.Module()
    whole.net, whole.fc = nn.Sequential(stem, *stages), nn.Linear(2048, 10)
    layers = nn.Linear(2048, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU()
    head = nn.Sequential(*layers, nn.Linear(8, 4, bias=False), nn.BatchNorm1d(4))
    for module in (*whole.modules(), *head.modules()):
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.running_mean.normal_(0, 0.3)
            nn.init.normal_(module.bias, 0, 0.3)
    saved = {"resnet": whole.state_dict(), "head": prefixed("layers.", head.state_dict())}
    settings = EncoderSettings(name="resnet50", args={"layers": [1, 1, 1, 1]})
    encoder, _ = load(saved, tmp_path, encoder=settings)
    net = whole.net.eval()
    compare(encoder, lambda x: net(x).mean((2, 3)), head.eval(), (0, 0, 0), (1, 1, 1), side=32)
