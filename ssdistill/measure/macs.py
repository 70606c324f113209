"""Multiply-accumulates of one image."""

from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ssdistill.errors import UserError


@torch.no_grad()
def count_macs(encoder: Any, image_size: int | None = None) -> int:
    """Multiply-accumulates of one forward pass on one square image.

    Half of what torch's flop counter sees: convolutions, matrix products and attention.
    Element-wise work (normalisation, activations, pooling) is not counted.

    Args:
        encoder: a PyTorch encoder.
        image_size: pixels a side; the encoder's own by default.

    Raises:
        UserError: for an ONNX encoder, whose float parent has the same count.
    """
    if not isinstance(encoder, nn.Module):
        raise UserError(
            f"MACs are counted in PyTorch, not for {encoder.path}: count its parent, "
            "quantization changes no MACs"
        )
    size = image_size or encoder.spec.image_size
    was_training = encoder.training
    trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    encoder.eval()
    # The counter stumbles over a view of a trainable parameter that was made without gradients.
    encoder.requires_grad_(False)
    try:
        with FlopCounterMode(display=False) as counter:
            encoder(encoder.mean.new_zeros(1, 3, size, size))
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        encoder.train(was_training)
    return counter.get_total_flops() // 2
