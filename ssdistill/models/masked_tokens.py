"""Encode images of which some patches are hidden behind a mask token."""

from typing import Any, cast

import torch
from timm.layers import PatchEmbed
from torch import Tensor, nn

from ssdistill.errors import UserError
from ssdistill.models.backbones import Encoder
from ssdistill.models.final_patches import FINAL_PATCHES
from ssdistill.models.representation import Representation


def mask_width(encoder: Encoder) -> int | None:
    """Width of the patches that a mask token may replace; None of networks without such.

    They are those of a vision transformer, which has the patches that it begins with behind its
    last norm as well: the grid of a hierarchical network shrinks, and convolutions would mix what
    is hidden with what is not.
    """
    embed = getattr(encoder.net, "patch_embed", None)
    if not isinstance(embed, PatchEmbed) or FINAL_PATCHES not in encoder.tap_names:
        return None
    before = encoder.taps
    encoder.set_taps((FINAL_PATCHES,))
    try:
        width, *grid = encoder.map_shapes()[FINAL_PATCHES]
    finally:
        encoder.set_taps(before)
    return width if tuple(grid) == tuple(embed.grid_size) else None


def masked_pass(
    x_BCHW: Tensor, mask_BN: Tensor, encoder: Encoder, token_D: Tensor
) -> Representation:
    """Encode images whose masked patches are replaced before positions are added to them.

    As in BEiT (arXiv:2106.08254), iBOT (arXiv:2111.07832) and DINOv2 (arXiv:2304.07193).

    Args:
        x_BCHW: images in [0, 1].
        mask_BN: true for patches to hide, row by row; one that hides nothing changes nothing.
        encoder: one that has a :func:`mask_width`.
        token_D: what stands in their place, as wide; not part of the encoder.
    """

    def replace(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if output[..., 0].numel() != mask_BN.numel():
            raise UserError(
                f"views of {x_BCHW.shape[2]} x {x_BCHW.shape[3]} pixels have other patches than "
                "the images; losses with masks compare views of full size: set pairs"
            )
        # (B, N, D), or (B, H, W, D) where networks take images of any size.
        mask = mask_BN.view(*output.shape[:-1], 1)
        return torch.where(mask, token_D.to(output.dtype), output)

    embed = cast("nn.Module", cast("Any", encoder.net).patch_embed)
    hook = embed.register_forward_hook(replace)
    try:
        return encoder.forward(x_BCHW)
    finally:
        hook.remove()
