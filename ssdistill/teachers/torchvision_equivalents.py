"""timm equivalents of torchvision's networks."""

import re
from typing import Any

import timm
import torch
from torch import Tensor, nn

from ssdistill.models.spec import RGB
from ssdistill.models.torchvision_net import TorchvisionNet
from ssdistill.settings import Size, height_width

TOLERANCE = 1e-4
"""Largest difference between embeddings, relative to the largest value."""
# torchvision's MobileNetV3 and EfficientNetV2 have a larger epsilon in their batch norms.
LARGE_EPS = {"bn_eps": 1e-3}
EQUIVALENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "mobilenet_v2": ("mobilenetv2_100", {}),
    "mobilenet_v3_large": ("mobilenetv3_large_100", LARGE_EPS),
    "mobilenet_v3_small": ("mobilenetv3_small_100", LARGE_EPS),
    "mnasnet0_5": ("mnasnet_050", {}),
    "mnasnet1_0": ("mnasnet_100", {}),
    "efficientnet_v2_s": ("efficientnetv2_s", LARGE_EPS),
    "efficientnet_v2_m": ("efficientnetv2_m", LARGE_EPS),
    "efficientnet_v2_l": ("efficientnetv2_l", LARGE_EPS),
    "vit_b_16": ("vit_base_patch16_224", {}),
    "vit_b_32": ("vit_base_patch32_224", {}),
    "vit_l_16": ("vit_large_patch16_224", {}),
    "vit_h_14": ("vit_huge_patch14_224", {}),
}
"""timm's name and arguments for networks that it names differently."""
VIT_KEYS = (
    (r"^class_token$", "cls_token"),
    (r"^encoder\.pos_embedding$", "pos_embed"),
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^encoder\.ln\.", "norm."),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.self_attention\.in_proj_(weight|bias)$", r".attn.qkv.\1"),
    (r"\.self_attention\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.0\.", ".mlp.fc1."),
    (r"\.mlp\.3\.", ".mlp.fc2."),
)
"""Keys of torchvision's vision transformers and what timm calls them."""


@torch.no_grad()
def timm_equivalent(
    name: str, torchvision_net: TorchvisionNet, size: Size, channels: int = RGB
) -> tuple[str, dict[str, Any], nn.Module] | None:
    """Build timm's equivalent with torchvision's weights, and verify equal embeddings.

    Args:
        name: torchvision's.
        torchvision_net: in eval mode, at the weights wanted.
        size: of the noise on which the two have to agree.
        channels: of the images that torchvision's takes.

    Returns:
        timm's name and arguments, and the network; None where there is none that agrees.
    """
    twin, args = EQUIVALENTS.get(name, (name, {}))
    if not timm.is_model(twin):
        return None
    if twin.startswith("vit_"):
        args = {**args, "img_size": size}
    first: dict[str, Any] = {"in_chans": channels} if channels != RGB else {}
    timm_net: Any = timm.create_model(twin, num_classes=0, **args, **first).eval()
    state = _renamed(torchvision_net.net.state_dict(), timm_net)
    if state is None:
        return None
    timm_net.load_state_dict(state)
    generator = torch.Generator().manual_seed(0)
    x_BCHW = torch.randn(1, channels, *height_width(size), generator=generator)
    expected_BD = torchvision_net.forward_features(x_BCHW)
    found_BD = timm_net.forward_head(timm_net.forward_features(x_BCHW), pre_logits=True)
    if found_BD.shape != expected_BD.shape:
        return None
    close = (found_BD - expected_BD).abs().max() <= TOLERANCE * expected_BD.abs().max()
    return (twin, args, timm_net) if close else None


def _renamed(state: dict[str, Tensor], timm_net: nn.Module) -> dict[str, Tensor] | None:
    """``state`` under timm's keys: renamed, or, where that is not enough, one after the other."""
    timm_state = timm_net.state_dict()
    for pattern, name in VIT_KEYS if "class_token" in state else ():
        state = {re.sub(pattern, name, key): value for key, value in state.items()}
    if {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in timm_state.items()}:
        return state
    sizes = ([v.numel() for v in tensors.values()] for tensors in (state, timm_state))
    if not all(a == b for a, b in zip(*sizes, strict=False)) or len(state) != len(timm_state):
        return None
    # A linear layer there may be a convolution here.
    return timm.models.remap_state_dict(state, timm_net)
