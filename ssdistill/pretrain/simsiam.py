"""SimSiam (Chen and He, CVPR 2021, arXiv:2011.10566)."""

import torch
from lightly.loss import NegativeCosineSimilarity
from torch import Tensor

from ssdistill.data.batch import Batch
from ssdistill.models.backbones import Encoder
from ssdistill.models.heads import BatchNorm, MLPSettings, PredictorSettings
from ssdistill.pretrain import Method
from ssdistill.settings import PositiveInt


class SimSiamProjector(MLPSettings):
    hidden_dim: PositiveInt | None = 2048
    output_dim: PositiveInt = 2048
    depth: PositiveInt = 3
    batch_norm: BatchNorm = "all"
    last_affine: bool = False


class SimSiamPredictor(PredictorSettings):
    hidden_dim: PositiveInt | None = 512


class SimSiam(Method):
    """Predict the other view's projection, with stop-gradient.

    L = -1/2 cos(p_1, sg(z_2)) - 1/2 cos(p_2, sg(z_1)), p = q(z) (arXiv:2011.10566, eq. 4), -1 at
    best. There is neither a momentum network nor a negative: the stop-gradient sg and the
    predictor q alone keep the embedding from collapsing. Each view has batch-norm statistics of
    its own.

    The authors leave the predictor's learning rate constant while the others' decays (table 1:
    68.1 % instead of 67.7 % on ImageNet): ``optim: {constant: [predictor]}``, which is not the
    default.

    Args:
        projector: the head whose output is z.
        predictor: the head q; as wide as the projector.
    """

    kind = "simsiam"
    paper = "Chen and He, CVPR 2021, arXiv:2011.10566"
    recipes = ("strong", "strong")
    accumulates = True

    def __init__(
        self,
        encoder: Encoder,
        *,
        projector: SimSiamProjector = SimSiamProjector(),
        predictor: SimSiamPredictor = SimSiamPredictor(),
    ):
        super().__init__(encoder)
        self.projector = projector.build(encoder.embed_dim)
        self.predictor = predictor.build(projector.output_dim, output_dim=projector.output_dim)
        self.criterion = NegativeCosineSimilarity()

    def forward(self, views: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        z0_BP, z1_BP = (self.projector(z_BD) for z_BD in self.embed(views))
        p0_BP, p1_BP = self.predictor(z0_BP), self.predictor(z1_BP)
        with torch.autocast(p0_BP.device.type, enabled=False):
            directions = self.criterion(p0_BP.float(), z1_BP.detach().float()) + self.criterion(
                p1_BP.float(), z0_BP.detach().float()
            )
        return {self.kind: directions / 2}
