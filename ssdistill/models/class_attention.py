"""What the class token of a transformer's block attends to, as logits."""

from typing import Any

import torch
from einops import rearrange
from timm.layers import apply_rot_embed_cat
from timm.layers.attention import AttentionRope
from timm.models.eva import Eva, EvaAttention
from timm.models.vision_transformer import Attention, VisionTransformer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

KINDS = Attention, AttentionRope, EvaAttention
"""timm's attention whose logits are q·k / sqrt(d) of normed and perhaps rotated queries and keys.
Others add biases."""


def class_token_attention(net: nn.Module) -> dict[str, nn.Module]:
    """Attention of every block of a transformer with a class token, by block.

    These are timm's ``VisionTransformer`` and ``Eva``, as which it builds EVA, DINOv3, PE and
    LingBot.
    """
    if not isinstance(net, VisionTransformer | Eva) or getattr(net, "cls_token", None) is None:
        return {}
    info: Any = net.feature_info
    names = [one["module"] for one in info]
    modules: dict[str, Any] = {
        name: getattr(net.get_submodule(name), "attn", None) for name in names
    }
    return {name: attention for name, attention in modules.items() if type(attention) in KINDS}


def catch_class_attention(
    attention: nn.Module, caught: dict[str, Tensor], name: str
) -> list[RemovableHandle]:
    """Record the class token's logits (B, heads, 1, N) under a name on each forward pass.

    Returns:
        handles that end it.
    """
    catch = _CatchAttention(attention, caught, name)
    parts: Any = attention
    return [
        attention.register_forward_pre_hook(catch.rotation, with_kwargs=True),
        parts.q_norm.register_forward_hook(catch.query),
        parts.k_norm.register_forward_hook(catch.keys),
    ]


# Hooks are methods, not closures: a deep copy of the network must fill the copy's dictionary.
class _CatchAttention:
    """Logits from the queries and keys that have gone through their norms."""

    def __init__(self, attention: Any, caught: dict[str, Tensor], name: str):
        self.attention, self.caught, self.name = attention, caught, name
        self.rope: Tensor | None = None
        self.query_BH1d: Tensor | None = None

    def rotation(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not isinstance(module, Attention):
            self.rope = kwargs["rope"] if "rope" in kwargs else (*args, None)[1]

    def query(self, norm: nn.Module, args: tuple[Tensor, ...], q_BHNd: Tensor) -> None:
        # The class token comes first, and has no position to be rotated by.
        self.query_BH1d = q_BHNd[:, :, :1]

    def keys(self, norm: nn.Module, args: tuple[Tensor, ...], k_BHNd: Tensor) -> None:
        q_BH1d, self.query_BH1d = self.query_BH1d, None
        rope, self.rope = self.rope, None
        assert q_BH1d is not None
        if rope is not None:
            k_BHNd = rotated(k_BHNd, rope, self.attention)
        self.caught[self.name] = _logits(self.attention, q_BH1d, k_BHNd)


def class_token_logits(attention: Any, qkv_BNC: Tensor) -> Tensor:
    """q_0·k_j / sqrt(d), (B, heads, 1, N) in float32, from the output of ``attention.qkv``.

    For attention that does not rotate its keys.
    """
    q_BHNd, k_BHNd, _ = rearrange(
        qkv_BNC, "b n (qkv heads d) -> qkv b heads n d", qkv=3, heads=attention.num_heads
    )
    return _logits(attention, attention.q_norm(q_BHNd[:, :, :1]), attention.k_norm(k_BHNd))


def _logits(attention: Any, q_BH1d: Tensor, k_BHNd: Tensor) -> Tensor:
    groups = getattr(attention, "num_kv_groups", 1)
    with torch.autocast(k_BHNd.device.type, enabled=False):
        k_BHNd = k_BHNd.float().repeat_interleave(groups, dim=1)
        return attention.scale * q_BH1d.float() @ k_BHNd.mT


def rotated(k_BHNd: Tensor, rope: Tensor, attention: Any) -> Tensor:
    """Keys of which those of patches are rotated by their positions."""
    first = attention.num_prefix_tokens
    half = {"half": True} if getattr(attention, "rotate_half", False) else {}
    patches_BHNd = apply_rot_embed_cat(k_BHNd[:, :, first:], rope, **half)
    return torch.cat([k_BHNd[:, :, :first], patches_BHNd.type_as(k_BHNd)], 2)
