"""SimCLR (Chen et al., ICML 2020, arXiv:2002.05709)."""

import torch
from lightly.loss import NTXentLoss
from torch import Tensor

from ssdistill.data.batch import Batch
from ssdistill.models.backbones import Encoder
from ssdistill.models.heads import BatchNorm, MLPSettings
from ssdistill.pretrain import Method
from ssdistill.settings import Positive, PositiveInt


class SimCLRProjector(MLPSettings):
    output_dim: PositiveInt = 128
    batch_norm: BatchNorm = "all"


class SimCLR(Method):
    """Attract two views of an image and repel all other views of the batch (NT-Xent, eq. 1).

    L = -1/2B sum_i log( exp(z_i.z_j / T) / sum_{k != i} exp(z_i.z_k / T) ), z of unit length.

    Args:
        temperature: T.
        projector: the head whose output is z.
    """

    kind = "simclr"
    paper = "Chen et al., ICML 2020, arXiv:2002.05709"
    recipes = ("simclr", "simclr")
    together = True

    def __init__(
        self,
        encoder: Encoder,
        *,
        temperature: Positive = 0.2,
        projector: SimCLRProjector = SimCLRProjector(),
    ):
        super().__init__(encoder)
        self.projector = projector.build(encoder.embed_dim)
        self.criterion = NTXentLoss(temperature=temperature, gather_distributed=True)

    def forward(self, views: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        z0_BP, z1_BP = self.projector(torch.cat(self.embed(views))).chunk(2)
        # Logits of cosine / T need float32: bf16 resolves a cosine only to about 0.004.
        with torch.autocast(z0_BP.device.type, enabled=False):
            return {self.kind: self.criterion(z0_BP.float(), z1_BP.float())}
