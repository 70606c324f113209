"""Barlow Twins (Zbontar et al., ICML 2021, arXiv:2103.03230)."""

import torch
import torch.nn.functional as F
from lightly.models.modules.heads import ProjectionHead
from torch import Tensor, nn

from ssdistill.data.batch import Batch
from ssdistill.distributed import gather_with_gradient
from ssdistill.models.backbones import Encoder
from ssdistill.models.heads import MLPSettings
from ssdistill.pretrain import Method
from ssdistill.settings import NonNegative, Positive, PositiveInt


class WideProjector(MLPSettings):
    hidden_dim: PositiveInt | None = 8192
    output_dim: PositiveInt = 8192
    depth: PositiveInt = 3

    def build(self, input_dim: int, output_dim: int | None = None) -> ProjectionHead:
        """Build the head; the last layer has no bias, since the loss does not depend on it."""
        head = super().build(input_dim, output_dim)
        if isinstance(head.layers[-1], nn.Linear):
            head.layers[-1].register_parameter("bias", None)
        return head


def cross_correlation(z0_BP: Tensor, z1_BP: Tensor) -> Tensor:
    """Pearson correlations (P, P) between the dimensions of two views.

    Over the images of all processes: lightly's loss standardizes those of each process alone.
    """
    z0_NP, z1_NP = (
        F.batch_norm(gather_with_gradient(z_BP), None, None, training=True)
        for z_BP in (z0_BP, z1_BP)
    )
    return z0_NP.T @ z1_NP / len(z0_NP)


class BarlowTwins(Method):
    """Make the cross-correlation matrix of two views' projections the identity.

    L = sum_i (1 - C_ii)^2 + off_diagonal_weight sum_{i != j} C_ij^2 (eq. 1), C the correlation of
    the two views' projections over the batch (eq. 2). L grows with the width of the projector and
    is multiplied by ``scale`` in the total, which SGD feels and AdamW and LARS hardly do.

    Each view passes the batch norms of encoder and projector on its own. The one after the
    projector's last layer, without scale and shift, is part of C.

    Args:
        off_diagonal_weight: lambda.
        scale: of the loss in the total. The authors' first code had 1/32, their last has none.
        projector: the head whose output is correlated.
    """

    kind = "barlow_twins"
    paper = "Zbontar et al., ICML 2021, arXiv:2103.03230"
    recipes = ("byol_a", "byol_b")

    def __init__(
        self,
        encoder: Encoder,
        *,
        off_diagonal_weight: NonNegative = 0.0051,
        scale: Positive = 1.0,
        projector: WideProjector = WideProjector(),
    ):
        super().__init__(encoder)
        self.off_diagonal_weight, self.scale = off_diagonal_weight, scale
        self.projector = projector.build(encoder.embed_dim)

    def weights_at(self, step: int, num_steps: int) -> dict[str, float]:
        return {self.kind: self.scale}

    def forward(self, views: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        z0_BP, z1_BP = (self.projector(z_BD) for z_BD in self.embed(views))
        # Sums of many small squares need float32.
        with torch.autocast(z0_BP.device.type, enabled=False):
            return {self.kind: self.loss(z0_BP.float(), z1_BP.float())}

    def loss(self, z0_BP: Tensor, z1_BP: Tensor) -> Tensor:
        """Eq. 1 for float32 projections (B, P) of the two views."""
        correlation_PP = cross_correlation(z0_BP, z1_BP)
        on_diagonal = (1 - correlation_PP.diagonal()).square().sum()
        off_diagonal = correlation_PP.fill_diagonal_(0).square().sum()
        return on_diagonal + self.off_diagonal_weight * off_diagonal
