"""VICReg (Bardes et al., ICLR 2022, arXiv:2105.04906)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ssdistill.data.batch import Batch
from ssdistill.distributed import gather_with_gradient
from ssdistill.models.backbones import Encoder
from ssdistill.pretrain import Method
from ssdistill.pretrain.barlow_twins import WideProjector
from ssdistill.settings import NonNegative

EPS = 1e-4
"""Added to a variance before its square root, whose gradient is infinite at 0."""


def variance_hinge(z_NP: Tensor) -> Tensor:
    """mean_j max(0, 1 - sqrt(Var(z_j) + EPS)) (eqs. 1 and 2), with the unbiased variance."""
    return F.relu(1 - (z_NP.var(0) + EPS).sqrt()).mean()


def squared_covariance(z_NP: Tensor) -> Tensor:
    """sum_{i != j} Cov(z_i, z_j)^2 / P (eqs. 3 and 4), with the unbiased covariance."""
    # lightly's picks the off-diagonal entries by index: gigabytes at a width of 8192.
    z_NP = z_NP - z_NP.mean(0)
    covariance_PP = z_NP.T @ z_NP / (len(z_NP) - 1)
    return covariance_PP.fill_diagonal_(0).square().sum() / z_NP.shape[1]


class VICReg(Method):
    """Invariance between views, variance of each dimension, decorrelation of dimensions.

    L = invariance_weight s + variance_weight v + covariance_weight c (eq. 6) of the projections
    z and z': s = mean (z - z')^2 over images and dimensions, v the mean over both views of
    mean_j max(0, 1 - std(z_j)), and c the sum over both views of sum_{i != j} Cov(z_i, z_j)^2 / P.
    As in the published code, and unlike eqs. 5 and 6, s is divided by the width P and v is halved.
    Variances and covariances are those of the images of all processes.

    Each view passes the batch norms of encoder and projector on its own. The default views are
    those of the published code, which are BYOL's; the paper gives both views the same recipe.

    Args:
        invariance_weight: lambda.
        variance_weight: mu.
        covariance_weight: nu.
        projector: the head whose output is z, the paper's expander.
    """

    kind = "vicreg"
    paper = "Bardes et al., ICLR 2022, arXiv:2105.04906"
    recipes = ("byol_a", "byol_b")

    def __init__(
        self,
        encoder: Encoder,
        *,
        invariance_weight: NonNegative = 25.0,
        variance_weight: NonNegative = 25.0,
        covariance_weight: NonNegative = 1.0,
        projector: WideProjector = WideProjector(),
    ):
        super().__init__(encoder)
        self.weights = {
            "invariance": invariance_weight,
            "variance": variance_weight,
            "covariance": covariance_weight,
        }
        self.projector = projector.build(encoder.embed_dim)

    def weights_at(self, step: int, num_steps: int) -> dict[str, float]:
        return self.weights

    def forward(self, views: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        z0_BP, z1_BP = (self.projector(z_BD) for z_BD in self.embed(views))
        # Variances near zero and sums of many small squares need float32.
        with torch.autocast(z0_BP.device.type, enabled=False):
            return self.terms(z0_BP.float(), z1_BP.float())

    def terms(self, z0_BP: Tensor, z1_BP: Tensor) -> dict[str, Tensor]:
        """s, v and c by name, for float32 projections (B, P) of the two views."""
        z0_NP, z1_NP = gather_with_gradient(z0_BP), gather_with_gradient(z1_BP)
        return {
            "invariance": F.mse_loss(z0_BP, z1_BP),
            "variance": (variance_hinge(z0_NP) + variance_hinge(z1_NP)) / 2,
            "covariance": squared_covariance(z0_NP) + squared_covariance(z1_NP),
        }
