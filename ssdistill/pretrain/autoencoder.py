"""Denoising autoencoder (Vincent et al., ICML 2008; JMLR 2010)."""

from typing import Annotated

import torch
import torch.nn.functional as F
from einops import rearrange
from pydantic import Field
from torch import Tensor, nn

from ssdistill.data.batch import Batch
from ssdistill.data.masking import shuffled
from ssdistill.models.backbones import Encoder
from ssdistill.models.spec import RGB
from ssdistill.pretrain import Method
from ssdistill.settings import NonNegative, PositiveInt, Size, height_width

START_SIDE = 4
"""Side of the map that the decoder makes of an embedding."""
NARROWEST = 16
"""Channels below which the decoder does not go."""


class ImageDecoder(nn.Module):
    """Decode an embedding (B, D) to an image (B, C, H, W) of ``size`` in normalized pixels.

    A linear layer makes a 4x4 map, which is doubled in side by nearest neighbors and convolved
    (3x3, batch norm, ReLU) until it reaches the longer side, with half the channels each time.
    """

    def __init__(self, embed_dim: int, width: int, size: Size, channels: int = RGB):
        super().__init__()
        self.size = height_width(size)
        layers: list[nn.Module] = [
            nn.Linear(embed_dim, width * START_SIDE**2, bias=False),
            nn.Unflatten(1, (width, START_SIDE, START_SIDE)),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
        side = START_SIDE
        while side < max(self.size):
            narrower = max(width // 2, min(width, NARROWEST))
            layers += [
                nn.Upsample(scale_factor=2),
                nn.Conv2d(width, narrower, 3, padding=1, bias=False),
                nn.BatchNorm2d(narrower),
                nn.ReLU(),
            ]
            width, side = narrower, 2 * side
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, channels, 3, padding=1))

    def forward(self, z_BD: Tensor) -> Tensor:
        image_BCHW = self.layers(z_BD).float()
        if image_BCHW.shape[-2:] == self.size:
            return image_BCHW
        return F.interpolate(image_BCHW, self.size, mode="bilinear", antialias=True)


class Autoencoder(Method):
    """Reconstruct an image from the embedding of its corrupted version.

    L = mean over pixels of (d(f(q(x))) - x)², f the encoder, d a small convolutional decoder that
    is discarded, x in the pixels that the encoder normalizes to. The corruption q adds Gaussian
    noise, then paints cells of a square grid in the data's mean color; it follows from the step
    and the position in the batch, or the image. All that the decoder knows of an image is the
    pooled embedding, which is what a probe reads; hence any encoder will do. The batch norms of
    encoder and decoder see the corrupted images of a batch. There is no projector.

    Args:
        noise: standard deviation of the noise, for images in [0, 1].
        mask: fraction of the cells that are painted over.
        mask_grid: cells along a side of the image.
        decoder_width: channels of the decoder's first map, 4x4; each next one has half of them.

    Source: Vincent et al., ICML 2008, doi:10.1145/1390156.1390294; JMLR 11, 2010.
    """

    kind = "autoencoder"
    paper = "Vincent et al., ICML 2008, doi:10.1145/1390156.1390294"
    recipes = ("weak",)
    accumulates = True

    def __init__(
        self,
        encoder: Encoder,
        *,
        noise: NonNegative = 0.1,
        mask: Annotated[float, Field(ge=0, lt=1)] = 0.25,
        mask_grid: PositiveInt = 8,
        decoder_width: PositiveInt = 256,
    ):
        super().__init__(encoder)
        self.noise, self.mask_grid = noise, mask_grid
        self.num_masked = round(mask * mask_grid**2)
        spec = encoder.spec
        self.decoder = ImageDecoder(
            encoder.embed_dim, decoder_width, spec.image_size, spec.in_chans
        )

    def forward(self, views: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        clean_BCHW = views[0]
        (z_BD,) = self.embed([self.corrupt(clean_BCHW, batch)])
        target_BCHW = (clean_BCHW - self.encoder.mean) / self.encoder.std
        restored_BCHW = self.decoder(z_BD)
        return {self.kind: F.mse_loss(restored_BCHW, target_BCHW.float())}

    def corrupt(self, x_BCHW: Tensor, batch: Batch) -> Tensor:
        """Corrupt images ``x_BCHW`` in [0, 1] for the encoder."""
        if self.noise:
            x_BCHW = x_BCHW + self.noise * normal(x_BCHW, batch)
        if self.num_masked:
            x_BCHW = torch.where(self.cells(x_BCHW, batch), self.encoder.mean, x_BCHW)
        return x_BCHW

    def cells(self, x_BCHW: Tensor, batch: Batch) -> Tensor:
        """Draw the pixels to paint over, (B, 1, H, W), the same number of cells in each image."""
        side = self.mask_grid
        masked_BM = shuffled(batch, side**2)[:, : self.num_masked]
        mask_BN = x_BCHW.new_zeros(len(masked_BM), side**2).scatter_(1, masked_BM, 1.0)
        mask_B1hw = rearrange(mask_BN, "b (h w) -> b 1 h w", h=side)
        return F.interpolate(mask_B1hw, x_BCHW.shape[-2:]).bool()


def normal(x_BCHW: Tensor, batch: Batch) -> Tensor:
    """Draw this batch's part of Gaussian noise for the images of all processes, by the step."""
    count, own = batch.place
    generator = torch.Generator(x_BCHW.device).manual_seed(batch.step)
    shape = (count, *x_BCHW.shape[1:])
    return torch.randn(shape, generator=generator, device=x_BCHW.device)[own]
