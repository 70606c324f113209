"""NNCLR (Dwibedi et al., ICCV 2021, arXiv:2104.14548)."""

import torch
from torch import Tensor

from ssdistill.data.batch import Batch
from ssdistill.losses.base.bank import Bank
from ssdistill.losses.base.contrast import batch_contrast
from ssdistill.losses.base.similarity import unit
from ssdistill.models.backbones import Encoder
from ssdistill.models.heads import BatchNorm, MLPSettings, PredictorSettings
from ssdistill.pretrain import Method
from ssdistill.settings import Positive, PositiveInt


class NNCLRProjector(MLPSettings):
    hidden_dim: PositiveInt | None = 2048
    output_dim: PositiveInt = 256
    depth: PositiveInt = 3
    batch_norm: BatchNorm = "all"


class NNCLRPredictor(PredictorSettings):
    hidden_dim: PositiveInt | None = 4096


class NNCLR(Method):
    """InfoNCE with the nearest earlier embedding of a view as the positive.

    L = (CE(NN(z_1)·P_2 / T) + CE(NN(z_2)·P_1 / T)) / 2 (arXiv:2104.14548, alg. 1), where NN is the
    nearest row, by cosine, of a queue of earlier z_1 and P the predictor's output for all images
    of the batch, all of length 1; an image's own prediction is its class. The embeddings of the
    first view join the queue after scoring. The gradient goes through the predictions alone. The
    transposed term of eq. 4, which the authors find to make no difference, is omitted.

    Each view has batch-norm statistics of its own.

    Args:
        temperature: T.
        queue: embeddings kept; random directions at first. In one about as long as the data set
            an image mostly finds itself, as it was an epoch before.
        projector: the head whose output is z.
        predictor: the head whose output is P; as wide as the projector.
    """

    kind = "nnclr"
    paper = "Dwibedi et al., ICCV 2021, arXiv:2104.14548"
    recipes = ("byol_a", "byol_b")

    def __init__(
        self,
        encoder: Encoder,
        *,
        temperature: Positive = 0.1,
        queue: PositiveInt = 65536,
        projector: NNCLRProjector = NNCLRProjector(),
        predictor: NNCLRPredictor = NNCLRPredictor(),
    ):
        super().__init__(encoder)
        self.temperature = temperature
        self.projector = projector.build(encoder.embed_dim)
        self.predictor = predictor.build(projector.output_dim, output_dim=projector.output_dim)
        self.bank = Bank(queue, embedding=projector.output_dim)

    def forward(self, views: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        z0_BP, z1_BP = (self.projector(z_BD) for z_BD in self.embed(views))
        p0_BP, p1_BP = self.predictor(z0_BP), self.predictor(z1_BP)
        directions = batch_contrast(self.nearest(z0_BP), p1_BP, self.temperature) + batch_contrast(
            self.nearest(z1_BP), p0_BP, self.temperature
        )
        self.bank.push(embedding=unit(z0_BP))
        return {self.kind: directions / 2}

    @torch.no_grad()
    def nearest(self, z_BP: Tensor) -> Tensor:
        """Return the nearest row of the queue to each of ``z_BP``, (B, P)."""
        with torch.autocast(z_BP.device.type, enabled=False):
            nearest_B = (unit(z_BP) @ self.bank.embedding.T).argmax(1)
        return self.bank.embedding[nearest_B]
