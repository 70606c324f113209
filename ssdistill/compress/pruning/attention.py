"""Attention modules with removable heads, and the channels of each head."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import nn

from ssdistill.compress.pruning.narrow import Member


@dataclass(frozen=True)
class Attention:
    """One attention module.

    Attributes:
        name: in ``net``.
        root: name of a layer that writes the heads.
        heads, width: number of heads and channels of one.
        members: what belongs to every head; empty where heads cannot be removed.
        reason: why they cannot.
    """

    name: str
    root: str
    heads: int
    width: int
    members: tuple[Member, ...] = ()
    reason: str = ""


def find_attention(net: nn.Module) -> Iterator[Attention]:
    """Attention of timm (fused ``qkv``, ``proj``) and of transformers' BERT and its kin.

    The latter have ``query``, ``key`` and ``value`` in one module and the layer that reads the
    heads in ``output.dense`` beside it.
    """
    for name, module in net.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(module, nn.MultiheadAttention):
            yield Attention(name, f"{prefix}out_proj", module.num_heads, module.head_dim,
                            reason="torch's attention needs heads of equal width")  # fmt: skip
        elif isinstance(getattr(module, "qkv", None), nn.Linear):
            yield _fused(prefix, module)
        elif all(isinstance(getattr(module, k, None), nn.Linear) for k in ("query", "key")):
            yield _separate(net, name, prefix, module)


def _fused(prefix: str, module: nn.Module) -> Attention:
    heads, width = (getattr(module, key, None) or 0 for key in ("num_heads", "head_dim"))
    attention = Attention(prefix[:-1], f"{prefix}qkv", heads, width)
    readers = {"qkv": 3, "proj": 0, "gate": 1}
    others = [k for k, m in module.named_children() if k not in readers and _has_weights(m)]
    # Norms of queries and keys work within a head and are the same for all.
    others = [k for k in others if k not in ("q_norm", "k_norm")]
    fits = heads and width and getattr(module, "attn_dim", 0) == heads * width
    fused = cast("nn.Linear", module.qkv)  # find_attention has looked
    if not fits or fused.out_features != 3 * heads * width or module._parameters or others:
        return _unprunable(attention, "unsupported type of attention")
    members = [_member(f"{prefix}qkv", "out", heads, width, 3)]
    if getattr(module, "gate", None) is not None:
        members.append(_member(f"{prefix}gate", "out", heads, width))
    members.append(_member(f"{prefix}proj", "in", heads, width))
    return Attention(attention.name, attention.root, heads, width, tuple(members))


def _separate(net: nn.Module, name: str, prefix: str, module: nn.Module) -> Attention:
    heads = getattr(module, "num_attention_heads", 0)
    width = getattr(module, "attention_head_size", 0)
    attention = Attention(name, f"{prefix}query", heads, width)
    reader = f"{name.rpartition('.')[0]}.output.dense".lstrip(".")
    layers = dict(net.named_modules())
    writers = [f"{prefix}{key}" for key in ("query", "key", "value")]
    fits = heads and width and getattr(module, "all_head_size", 0) == heads * width
    fits = fits and all(k in layers and layers[k].out_features == heads * width for k in writers)
    others = [k for k, m in module.named_children() if f"{prefix}{k}" not in writers]
    others = [k for k in others if _has_weights(getattr(module, k))]
    if not fits or others or module._parameters or not isinstance(layers.get(reader), nn.Linear):
        return _unprunable(attention, "unsupported type of attention")
    members = [_member(key, "out", heads, width) for key in writers]
    members.append(_member(reader, "in", heads, width))
    return Attention(name, attention.root, heads, width, tuple(members))


def _unprunable(attention: Attention, reason: str) -> Attention:
    return Attention(
        attention.name, attention.root, attention.heads, attention.width, reason=reason
    )


def _has_weights(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _member(
    layer: str, side: Literal["out", "in"], heads: int, width: int, times: int = 1
) -> Member:
    """All channels of a layer that holds ``times`` vectors of all heads one after the other."""
    unit_N = torch.arange(heads).repeat_interleave(width).repeat(times)
    return Member(layer, side, torch.arange(len(unit_N)), unit_N)
