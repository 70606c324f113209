"""BYOL (Grill et al., NeurIPS 2020, arXiv:2006.07733)."""

import torch
from lightly.loss import NegativeCosineSimilarity
from torch import Tensor, nn

from ssdistill.data.batch import Batch
from ssdistill.models.backbones import Encoder
from ssdistill.models.ema import cosine_momentum, momentum_copy, update_momentum
from ssdistill.models.heads import MLPSettings, PredictorSettings
from ssdistill.pretrain import Method
from ssdistill.settings import Fraction, PositiveInt


class BYOLProjector(MLPSettings):
    hidden_dim: PositiveInt | None = 4096
    output_dim: PositiveInt = 256


class BYOLPredictor(PredictorSettings):
    hidden_dim: PositiveInt | None = 4096


class BYOL(Method):
    """Predict a momentum network's projection of the other view.

    L = sum over both directions of 2 - 2 cos(q(z_online), z_target) (eq. 2); the momentum rises
    from ``momentum`` to ``momentum_end`` by a cosine and covers batch-norm statistics.

    Args:
        momentum: of the target network at the first step.
        momentum_end: and at the last.
        projector: the head whose output the target network gives.
        predictor: the head of the online network that predicts it.
    """

    kind = "byol"
    paper = "Grill et al., NeurIPS 2020, arXiv:2006.07733"
    recipes = ("byol_a", "byol_b")
    accumulates = True

    def __init__(
        self,
        encoder: Encoder,
        *,
        momentum: Fraction = 0.99,
        momentum_end: Fraction = 1.0,
        projector: BYOLProjector = BYOLProjector(),
        predictor: BYOLPredictor = BYOLPredictor(),
    ):
        super().__init__(encoder)
        self.momentum, self.momentum_end = momentum, momentum_end
        self.projector = projector.build(encoder.embed_dim)
        self.predictor = predictor.build(projector.output_dim, output_dim=projector.output_dim)
        self.target = momentum_copy(nn.ModuleList([encoder, self.projector]))
        self.criterion = NegativeCosineSimilarity()

    def forward(self, views: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        p0_BP, p1_BP = (self.predictor(self.projector(z_BD)) for z_BD in self.embed(views))
        with torch.no_grad():
            target_encoder, target_projector = self.target
            z0_BP, z1_BP = map(target_projector, self.embeddings(target_encoder, views))
        with torch.autocast(p0_BP.device.type, enabled=False):
            directions = self.criterion(p0_BP.float(), z1_BP.float()) + self.criterion(
                p1_BP.float(), z0_BP.float()
            )
        return {self.kind: 4 + 2 * directions}

    def after_step(self, step: int, num_steps: int) -> None:
        momentum = cosine_momentum(self.momentum, step, num_steps, self.momentum_end)
        update_momentum(nn.ModuleList([self.encoder, self.projector]), self.target, momentum)
