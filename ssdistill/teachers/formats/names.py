"""Rename other projects' backbone tensors to timm's keys.

timm's ResNets have torchvision's names, its vision transformers those of DINO, MAE and MoCo v3.
"""

import re
from collections.abc import Callable

from torch import Tensor

State = dict[str, Tensor]

TORCHVISION_ORDER = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3",
                     "7": "layer4"}  # fmt: skip
"""A torchvision ResNet's children in an ``nn.Sequential``."""
SHORTCUT = re.compile(r"^(layer\d+\.\d+)\.shortcut\.")
"""Of lightly's and of many CIFAR ResNets."""

SIMCLR_V2 = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^net\.0\.0\.", "conv1."),
        (r"^net\.0\.1\.0\.", "bn1."),
        (r"^net\.(\d)\.blocks\.(\d+)\.projection\.shortcut\.", r"layer\1.\2.downsample.0."),
        (r"^net\.(\d)\.blocks\.(\d+)\.projection\.bn\.0\.", r"layer\1.\2.downsample.1."),
        (r"^net\.(\d)\.blocks\.(\d+)\.net\.0\.", r"layer\1.\2.conv1."),
        (r"^net\.(\d)\.blocks\.(\d+)\.net\.1\.0\.", r"layer\1.\2.bn1."),
        (r"^net\.(\d)\.blocks\.(\d+)\.net\.2\.", r"layer\1.\2.conv2."),
        (r"^net\.(\d)\.blocks\.(\d+)\.net\.3\.0\.", r"layer\1.\2.bn2."),
        (r"^net\.(\d)\.blocks\.(\d+)\.net\.4\.", r"layer\1.\2.conv3."),
        (r"^net\.(\d)\.blocks\.(\d+)\.net\.5\.0\.", r"layer\1.\2.bn3."),
    )
]
"""SimCLR v2's ResNets without selective kernels, as converted from TensorFlow."""

_LAYER = r"^encoder\.layers\.encoder_layer_(\d+)\."
TORCHVISION_VIT = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^class_token$", "cls_token"),
        (r"^encoder\.pos_embedding$", "pos_embed"),
        (r"^conv_proj\.", "patch_embed.proj."),
        (r"^encoder\.ln\.", "norm."),
        (_LAYER + r"ln_(\d)\.", r"blocks.\1.norm\2."),
        (_LAYER + r"self_attention\.in_proj_", r"blocks.\1.attn.qkv."),
        (_LAYER + r"self_attention\.out_proj\.", r"blocks.\1.attn.proj."),
        (_LAYER + r"mlp\.(?:0|linear_1)\.", r"blocks.\1.mlp.fc1."),
        (_LAYER + r"mlp\.(?:3|linear_2)\.", r"blocks.\1.mlp.fc2."),
    )
]
"""torchvision's vision transformers."""

CHUNK = re.compile(r"^blocks\.\d+\.(\d+)\.")
"""DINOv2 trains with blocks in chunks, and counts them through."""


def to_timm(state: State) -> State:
    """A backbone's tensors under timm's names, where theirs are those of a known project."""
    for fits, rename in RULES:
        if fits(state):
            state = {rename(name): tensor for name, tensor in state.items()}
    return state


def lacks_first_relu(state: State) -> bool:
    """Whether these are the children of lightly's own ResNet in an ``nn.Sequential``.

    Its ReLU after the first batch norm is no child, so that such a network has none there.
    """
    return "1.running_mean" in state and "2.0.conv1.weight" in state


def _in_order(name: str) -> str:
    first, _, rest = name.partition(".")
    return f"{TORCHVISION_ORDER.get(first, first)}.{rest}"


def _by_patterns(patterns: list[tuple[re.Pattern, str]]) -> Callable[[str], str]:
    def rename(name: str) -> str:
        for pattern, replacement in patterns:
            name, hits = pattern.subn(replacement, name)
            if hits:
                break
        return name

    return rename


RULES: list[tuple[Callable[[State], bool], Callable[[str], str]]] = [
    (lambda s: "vit.cls_token" in s or "vit.class_token" in s, lambda n: n.removeprefix("vit.")),
    (lambda s: "0.weight" in s and "1.running_mean" in s, _in_order),
    (lambda s: "net.0.0.weight" in s, _by_patterns(SIMCLR_V2)),
    (lambda s: "conv_proj.weight" in s, _by_patterns(TORCHVISION_VIT)),
    (lambda s: "blocks.0.0.norm1.weight" in s, _by_patterns([(CHUNK, r"blocks.\1.")])),
    (lambda s: any(map(SHORTCUT.match, s)), _by_patterns([(SHORTCUT, r"\1.downsample.")])),
]
"""(whether it is theirs, how a name is turned into timm's), tried one after the other: lightly's
masked transformers first, which have those of timm and torchvision inside."""
