"""BYOL (Grill et al., NeurIPS 2020, arXiv:2006.07733)."""

import torch
from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead
from torch import Tensor, nn

from ssdistill.data.batch import Batch
from ssdistill.models.backbones import Encoder
from ssdistill.models.ema import cosine_momentum, momentum_copy, update_momentum
from ssdistill.pretrain import Method
from ssdistill.settings import Fraction, PositiveInt


class BYOL(Method):
    """The online network predicts a momentum network's projection of the other view.

    L = sum over both directions of 2 - 2 cos(q(z_online), z_target) (eq. 2); the momentum rises
    from ``momentum`` to 1 by a cosine and covers batch-norm statistics.

    Args:
        momentum: of the target network at the first step.
        hidden_dim: width of the hidden layer of projector and predictor.
        projection_dim: width of their output.
    """

    kind = "byol"
    paper = "Grill et al., NeurIPS 2020, arXiv:2006.07733"
    recipes = ("byol_a", "byol_b")

    def __init__(
        self,
        encoder: Encoder,
        *,
        momentum: Fraction = 0.99,
        hidden_dim: PositiveInt = 1024,
        projection_dim: PositiveInt = 256,
    ):
        super().__init__(encoder)
        self.momentum = momentum
        self.projector = BYOLProjectionHead(encoder.embed_dim, hidden_dim, projection_dim)
        self.predictor = BYOLPredictionHead(projection_dim, hidden_dim, projection_dim)
        self.target = momentum_copy(nn.ModuleList([encoder, self.projector]))
        self.criterion = NegativeCosineSimilarity()

    def forward(self, views: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        p0_BP, p1_BP = self.predictor(self.projector(torch.cat(self.embed(views)))).chunk(2)
        with torch.no_grad():
            target_encoder, target_projector = self.target
            embedding_ND = target_encoder(torch.cat(views)).embedding_BD
            z0_BP, z1_BP = target_projector(embedding_ND).chunk(2)
        with torch.autocast(p0_BP.device.type, enabled=False):
            directions = self.criterion(p0_BP.float(), z1_BP.float()) + self.criterion(
                p1_BP.float(), z0_BP.float()
            )
        return {self.kind: 4 + 2 * directions}

    def after_step(self, step: int, num_steps: int) -> None:
        momentum = cosine_momentum(self.momentum, step, num_steps)
        update_momentum(nn.ModuleList([self.encoder, self.projector]), self.target, momentum)
