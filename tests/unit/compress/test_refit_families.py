"""Refit against no refit, on one network of every family with half of its channels removed."""

from pathlib import Path

import pytest
import torch
from timm.models._efficientnet_builder import decode_arch_def
from timm.models.mobilenetv3 import MobileNetV3
from torch import nn

from ssdistill.compress import Context
from ssdistill.compress.fitting.consumers import likeness
from ssdistill.compress.prune import Prune
from ssdistill.compress.recalibrate import recalibrate
from ssdistill.compress.refit import refit_layers
from ssdistill.models.backbones import EncoderSettings, build_encoder
from ssdistill.models.wrapped import Wrapped

RESNET = {
    "layers": (1, 1, 1, 0),
    "channels": (16, 32, 32, 32),
    "stem_type": "deep",
    "stem_width": 8,
    "zero_init_last": False,
}
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}


def images(count):
    """Mixtures of a few smooth patterns: something to see for weights that were never trained."""
    generator = torch.Generator().manual_seed(0)
    patterns_KCHW = torch.rand(10, 3, 8, 8, generator=generator)
    patterns_KCHW = nn.functional.interpolate(patterns_KCHW, size=32, mode="bilinear")
    share_NK = torch.rand(count, 10, generator=generator).pow(3)
    return torch.einsum("nk,kchw->nchw", share_NK / share_NK.sum(1, keepdim=True), patterns_KCHW)


def vgg():
    layers, width = [], 3
    for wider in (16, 24, 32):
        layers += [nn.Conv2d(width, wider, 3, padding=1), nn.BatchNorm2d(wider), nn.ReLU(True)]
        layers += [nn.MaxPool2d(2)]
        width = wider
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 24))
    return Wrapped(net, images(2), name="vgg")


def mobilenet():
    blocks = [["ds_r1_k3_s2_e1_c16_se0.25_nre"], ["ir_r2_k3_s2_e3_c24_se0.25"], ["cn_r1_k1_s1_c48"]]
    blocks = decode_arch_def(blocks)
    net = MobileNetV3(blocks, num_classes=0, stem_size=8, num_features=32, act_layer=nn.Hardswish)
    return Wrapped(net, images(2), name="mobilenet")


def timm(name, **args):
    return lambda: build_encoder(EncoderSettings(name=name, args=args, stem_stride=2), 32)


FAMILIES = {
    "resnet": timm("resnet10t", **RESNET),
    "vgg": vgg,
    "mobilenet": mobilenet,
    "efficientnet": timm("test_efficientnet"),
    "convnext": timm("test_convnext", ls_init_value=1.0),
    "vit": timm("vit_tiny_patch16_224", **VIT),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_refitting_brings_the_pruned_network_closer_to_the_dense_one(family):
    torch.manual_seed(0)
    x_BCHW = images(160)
    dense = recalibrate(FAMILIES[family]().eval(), x_BCHW.split(80))
    context = Context(images=lambda n, seed: x_BCHW[:n], folder=Path())
    # A plain stack of layers is one block as a whole: nothing in it is inner.
    scope = "all" if family == "vgg" else "inner"
    pruned = Prune(ratio=0.5, criterion="random", round_to=4, scope=scope).apply(dense, context)
    fitted, fits = refit_layers(pruned, dense, x_BCHW[:96])
    before, after = (likeness(model, dense, x_BCHW[96:]) for model in (pruned, fitted))
    assert sum(fit.left < 1 for fit in fits) >= len(fits) / 2
    assert after > before + 0.2 * (1 - before)
