"""Foundation models that timm builds serve as teachers, at a small size and with random weights."""

import pytest
import timm
import torch
from torch import nn

from ssdistill.distill.build import build_losses, shapes
from ssdistill.distill.distiller import Distiller
from ssdistill.models.backbones import EncoderSettings, build_encoder
from ssdistill.settings.registry import LOSSES
from ssdistill.testing.losses import make_batch

SIDE = 32
TRANSFORMER = {"img_size": SIDE, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
CONVOLUTIONS = {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}
TEACHERS = {
    "DINOv2": "vit_small_patch14_reg4_dinov2",
    "DINOv3": "vit_small_patch16_dinov3",
    "DINOv3, a ConvNeXt": "convnext_tiny",
    "EUPE": "vit_tiny_patch16_dinov3_qkvb",
    "C-RADIOv3": "vit_base_patch16_radio_v3",
    "C-RADIOv4": "vit_huge_patch16_radio_v4",
    "C-RADIOv3, a NaFlexViT": "naflexvit_base_patch16_radio_v3",
    "PE core": "vit_pe_core_tiny_patch16_384",
    "PE spatial": "vit_pe_spatial_tiny_patch16_512",
    "TIPSv2": "vit_base_patch14_reg1_tipsv2",
    "LingBot": "vit_small_patch16_lingbot",
    "SigLIP": "vit_base_patch16_siglip_224",
    "CLIP": "vit_base_patch16_clip_224",
}
WITHOUT_ATTENTION = {"DINOv3, a ConvNeXt", "C-RADIOv3, a NaFlexViT", "SigLIP"}
"""Without a class token, or with attention of another kind."""
LOSSES_OF = {
    "lightly": {"local_weight": 1.0, "maps": "final", "queue": 16},
    "lightly_v2": {},
    "cospress": {},
    "attndistill": {},
}


def encoder_of(name):
    args = CONVOLUTIONS if name.startswith("convnext") else TRANSFORMER
    return build_encoder(EncoderSettings(name=name, args=args), SIDE)


@pytest.mark.parametrize("family", TEACHERS)
def test_a_small_network_learns_from_it(family):
    if not timm.is_model(TEACHERS[family]):
        pytest.skip(f"timm {timm.__version__} has no {TEACHERS[family]}")
    torch.manual_seed(0)
    teacher, student = encoder_of(TEACHERS[family]), encoder_of("vit_tiny_patch16_224")
    for parameter in teacher.parameters():
        nn.init.normal_(parameter, std=0.1)  # residual branches may begin at zero
    has_attention = any(name.startswith("attention:") for name in teacher.tap_names)
    assert has_attention == (family not in WITHOUT_ATTENTION)
    known = shapes(student, teacher, 64)
    assert known.teacher_maps["final:patches"][0] == teacher.embed_dim
    kinds = [kind for kind in LOSSES_OF if has_attention or kind != "attndistill"]
    settings = {kind: LOSSES.schema(kind)(**LOSSES_OF[kind]) for kind in kinds}
    distiller = Distiller(student, teacher, build_losses(student, teacher, settings, 64), settings)
    values = distiller([torch.rand(4, 3, SIDE, SIDE)], make_batch(4, 0))
    torch.stack([*values.values()]).sum().backward()
    assert set(values) == set(kinds) and all(value.isfinite() for value in values.values())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in student.parameters())
