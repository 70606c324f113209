"""KoLeo: a regularizer that spreads embeddings (Sablayrolles et al., ICLR 2019)."""

import torch
from lightly.loss import KoLeoLoss
from torch import Tensor

from ssdistill.data.batch import Batch
from ssdistill.distributed import gather_with_gradient
from ssdistill.losses import Loss, Shapes
from ssdistill.models.representation import Outputs


class KoLeo(Loss):
    """Push each student embedding away from its nearest neighbor in the batch.

    L = -mean_i log |n(s_i) - n(s_nearest(i))|, the Kozachenko-Leonenko estimate of entropy up to
    constants (arXiv:1806.03198), within each view and averaged over the views. It reads
    the student alone and teaches it nothing of the teacher: combine it with another loss.
    Neighbors are sought among the images of all processes. DINOv3 (arXiv:2508.10104) seeks them
    on each GPU alone by default, and sums over the two large crops, each with the weight 0.1.

    ```yaml
    losses:
      feature: {kind: simreg, depth: 2, weight: 1.0}
      spread: {kind: koleo, weight: 0.1}
    ```
    """

    kind = "koleo"
    family = "prototype and logit"
    paper = "Sablayrolles et al., ICLR 2019, arXiv:1806.03198"
    paper_weight = 0.1
    reads = "embedding"
    views = 1
    exact_under_sharding = True

    def __init__(self, shapes: Shapes):
        super().__init__(shapes)
        self.criterion = KoLeoLoss()

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        return torch.stack([self.spread(r.embedding_BD) for r in student]).mean()

    def spread(self, s_BD: Tensor) -> Tensor:
        """The loss of one view, in float32."""
        with torch.autocast(s_BD.device.type, enabled=False):
            return self.criterion(gather_with_gradient(s_BD.float()))
