"""Multiply-accumulates from the shapes at every layer, without torch's counter."""

import math

import torch
from torch import nn

ATTENTION = ("Attention", "BertSelfAttention", "ViTSelfAttention")
"""Modules whose first input is (B, tokens, width) and that attend over all of it."""


@torch.no_grad()
def closed_form_macs(model):
    """Of one input: layers by weight and output positions, attention by tokens and head width."""
    counts = []

    def layer(module, inputs, output):
        if isinstance(module, nn.Linear):
            counts.append(output.numel() * module.in_features)
        else:
            taps = math.prod(module.kernel_size) * module.in_channels // module.groups
            counts.append(output.numel() * taps)

    def attention(module, inputs, output):
        tokens, width = inputs[0].shape[1], attended_width(module)
        counts.append(2 * tokens**2 * width)

    hooks = [
        module.register_forward_hook(attention if type(module).__name__ in ATTENTION else layer)
        for module in model.net.modules()
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d)
        or type(module).__name__ in ATTENTION
    ]
    try:
        model.eval()(model.example(1))
    finally:
        for hook in hooks:
            hook.remove()
    return sum(counts)


def attended_width(module):
    """All heads together."""
    if hasattr(module, "all_head_size"):
        return module.all_head_size
    return module.num_heads * module.head_dim
