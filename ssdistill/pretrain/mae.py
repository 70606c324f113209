"""MAE (He et al., CVPR 2022, arXiv:2111.06377)."""

from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from lightly.models.modules.masked_vision_transformer_decoder_timm import (
    MaskedVisionTransformerDecoderTIMM,
)
from lightly.models.modules.masked_vision_transformer_timm import init_weights
from lightly.models.utils import (
    get_2d_sine_cosine_positional_embedding_from_grid,
    get_at_index,
    normalize_mean_var,
)
from timm.layers import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ssdistill.data.batch import Batch
from ssdistill.data.masking import shuffled
from ssdistill.errors import UserError
from ssdistill.models.backbones import Encoder
from ssdistill.pretrain import Method
from ssdistill.settings import OpenFraction, PositiveInt
from ssdistill.train.microbatch import by_parts


class MAE(Method):
    """Reconstruct masked patches with a light decoder from the few visible ones.

    L = mean over masked patches of |d - x|² / pixels (sec. 3), d the decoder's output, x the
    pixels of a patch as the encoder normalizes them, less their mean and over their standard
    deviation in that patch unless ``normalize_targets`` is off. The encoder computes the visible
    patches only, beside its class and register tokens; the decoder, discarded afterwards, adds
    mask tokens and fixed sine-cosine positions. The encoder keeps timm's initialization and its
    learned positions, where the paper's has fixed ones. There is no batch norm and no projector.
    Which patches are masked follows from the step and the image alone. The metrics see the pooled
    tokens of the visible patches, not the embedding of whole images, which would cost a second
    forward pass.

    Args:
        mask_ratio: fraction of the patches that are masked; at least one is, and one is not.
        decoder_dim: width of the decoder's tokens.
        decoder_depth: its transformer blocks.
        decoder_heads: attention heads of each.
        normalize_targets: whether each patch of the target has mean 0 and variance 1.

    Raises:
        UserError: an encoder that is no plain vision transformer of timm, or a decoder whose
            width does not suit its heads and positions.
    """

    kind = "mae"
    paper = "He et al., CVPR 2022, arXiv:2111.06377"
    recipes = ("weak",)
    accumulates = True

    def __init__(
        self,
        encoder: Encoder,
        *,
        mask_ratio: OpenFraction = 0.75,
        decoder_dim: PositiveInt = 512,
        decoder_depth: PositiveInt = 8,
        decoder_heads: PositiveInt = 16,
        normalize_targets: bool = True,
    ):
        super().__init__(encoder)
        net = _plain_transformer(encoder)
        if decoder_dim % 4 or decoder_dim % decoder_heads:
            raise UserError(
                f"decoder_dim={decoder_dim} must be a multiple of 4 and of "
                f"decoder_heads={decoder_heads}"
            )
        self.normalize_targets = normalize_targets
        self.patch_size = net.patch_embed.patch_size[0]
        self.num_patches = net.patch_embed.num_patches
        self.num_visible = _num_visible(self.num_patches, mask_ratio)
        self.narrow = nn.Linear(net.embed_dim, decoder_dim)
        self.decoder = _decoder(
            net.patch_embed.grid_size,
            decoder_dim,
            decoder_depth,
            decoder_heads,
            num_prefix_tokens=net.num_prefix_tokens,
        )
        self.predict = nn.Linear(decoder_dim, encoder.spec.in_chans * self.patch_size**2)
        for layer in (self.narrow, self.predict):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, views: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        x_BCHW = (views[0] - self.encoder.mean) / self.encoder.std
        order_BN = shuffled(batch, self.num_patches)
        predicted_BMP, z_BD = by_parts(self.encoder, self, self.reconstruct, x_BCHW, order_BN)
        self.last_embeddings = [z_BD.detach()]
        with torch.autocast(x_BCHW.device.type, enabled=False):
            target_BMP = self.targets(x_BCHW.float(), order_BN[:, self.num_visible :])
            return {self.kind: F.mse_loss(predicted_BMP.float(), target_BMP)}

    def reconstruct(self, x_BCHW: Tensor, order_BN: Tensor) -> tuple[Tensor, Tensor]:
        """The masked patches' pixels (B, M, P), and the pooled tokens (B, D) of the others."""
        net = cast("VisionTransformer", self.encoder.net)
        token_BLD = self.encode(x_BCHW, order_BN[:, : self.num_visible])
        with torch.no_grad():
            z_BD = net.forward_head(token_BLD.detach(), pre_logits=True)
        # Networks that average their tokens have their last norm behind the pooling.
        return self.restore(net.fc_norm(token_BLD), order_BN), z_BD

    def targets(self, x_BCHW: Tensor, masked_BM: Tensor) -> Tensor:
        """Pixels (B, M, P) of the patches indexed by ``masked_BM``, from normalized images."""
        target_BMP = get_at_index(patches_of(x_BCHW, self.patch_size), masked_BM)
        return normalize_mean_var(target_BMP) if self.normalize_targets else target_BMP

    def encode(self, x_BCHW: Tensor, visible_BV: Tensor) -> Tensor:
        """Encode the patches indexed by ``visible_BV`` to tokens (B, prefix + V, D)."""
        net = cast("VisionTransformer", self.encoder.net)
        prefix = net.num_prefix_tokens

        def keep(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
            (token_BND,) = inputs
            seen_BVD = get_at_index(token_BND[:, prefix:], visible_BV)
            return torch.cat([token_BND[:, :prefix], seen_BVD], dim=1)

        # timm's place for dropping patches: after the positions, before the first block.
        hook = net.patch_drop.register_forward_hook(keep)
        try:
            return net.forward_features(x_BCHW)
        finally:
            hook.remove()

    def restore(self, token_BLD: Tensor, order_BN: Tensor) -> Tensor:
        """Decode the pixels (B, M, P) of the patches that were not encoded."""
        prefix = self.decoder.num_prefix_tokens
        token_BLE = self.narrow(token_BLD)
        mask_BME = self.decoder.mask_token.to(token_BLE.dtype).expand(
            len(order_BN), self.num_patches - self.num_visible, -1
        )
        shuffled_BNE = torch.cat([token_BLE[:, prefix:], mask_BME], dim=1)
        image_BNE = get_at_index(shuffled_BNE, order_BN.argsort(dim=1))
        decoded_BLE = self.decoder(torch.cat([token_BLE[:, :prefix], image_BNE], dim=1))
        masked_BM = order_BN[:, self.num_visible :]
        return self.predict(get_at_index(decoded_BLE[:, prefix:], masked_BM))


def patches_of(x_BCHW: Tensor, side: int) -> Tensor:
    """Cut images into patches (B, N, side * side * C), row by row."""
    return rearrange(x_BCHW, "b c (h p) (w q) -> b (h w) (p q c)", p=side, q=side)


def _decoder(
    grid: tuple[int, int], width: int, depth: int, heads: int, num_prefix_tokens: int
) -> MaskedVisionTransformerDecoderTIMM:
    """Build the decoder for a grid of patches: lightly knows the positions of a square one."""
    rows, columns = grid
    square = rows == columns
    decoder = MaskedVisionTransformerDecoderTIMM(
        rows * columns,
        width,
        depth,
        heads,
        num_prefix_tokens=num_prefix_tokens,
        initialize_weights=square,
    )
    if not square:
        nn.init.normal_(decoder.mask_token, std=0.02)
        x_hw, y_hw = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in (columns, rows)))
        positions = get_2d_sine_cosine_positional_embedding_from_grid(
            width, np.stack([x_hw, y_hw])[:, None]
        )
        decoder.pos_embed.data[0, num_prefix_tokens:] = torch.from_numpy(positions).float()
        decoder.apply(init_weights)
    return decoder


def _num_visible(num_patches: int, mask_ratio: float) -> int:
    return min(max(1, round(num_patches * (1 - mask_ratio))), num_patches - 1)


def _plain_transformer(encoder: Encoder) -> VisionTransformer:
    """Return the encoder's network if MAE can mask and restore its patches."""
    net, name = encoder.net, encoder.spec.name
    wants = "mae requires a plain vision transformer such as vit_small_patch16_224"
    patches = getattr(net, "patch_embed", None)
    if not isinstance(net, VisionTransformer) or not isinstance(patches, PatchEmbed):
        raise UserError(f"{wants}; '{name}' is not one")
    height, width = patches.patch_size
    if height != width or patches.num_patches < 2:
        raise UserError(f"{wants}; '{name}' has no grid of several square patches")
    if net.attn_pool is not None:
        raise UserError(f"{wants}; '{name}' uses attention pooling, which MAE does not train")
    return net
