"""KoLeo: a regularizer that spreads embeddings (Sablayrolles et al., ICLR 2019)."""

import torch
import torch.nn.functional as F
from lightly.loss import KoLeoLoss
from torch import Tensor

from ssdistill.data.batch import Batch
from ssdistill.distributed import gather_with_gradient
from ssdistill.losses import Loss, Shapes
from ssdistill.models.representation import Outputs
from ssdistill.settings import PositiveInt

EPS = 1e-8
"""Added to differences and distances, as in the published code."""


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

    Args:
        neighbors: how many nearest ones each embedding is pushed away from, by the mean of their
            terms (DINOv3); at most all others of the batch.
    """

    kind = "koleo"
    family = "prototype and logit"
    paper = "Sablayrolles et al., ICLR 2019, arXiv:1806.03198"
    paper_weight = 0.1
    reads = "embedding"
    views = 1
    exact_under_sharding = True
    later_settings = ("neighbors",)

    def __init__(self, shapes: Shapes, *, neighbors: PositiveInt = 1):
        super().__init__(shapes)
        self.neighbors = neighbors
        self.criterion = KoLeoLoss()

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        return torch.stack([self.spread(r.embedding_BD) for r in student]).mean()

    def spread(self, s_BD: Tensor) -> Tensor:
        """The loss of one view, in float32."""
        with torch.autocast(s_BD.device.type, enabled=False):
            s_ND = gather_with_gradient(s_BD.float())
            return self.criterion(s_ND) if self.neighbors == 1 else self._of_several(s_ND)

    def _of_several(self, s_ND: Tensor) -> Tensor:
        z_ND = F.normalize(s_ND, eps=EPS, dim=1)
        with torch.no_grad():
            cosine_NN = (z_ND @ z_ND.T).fill_diagonal_(-1)
            near_NK = cosine_NN.topk(min(self.neighbors, len(z_ND) - 1), dim=1).indices
        distance_NK = F.pairwise_distance(z_ND[:, None], z_ND[near_NK], eps=EPS)
        return -(distance_NK + EPS).log().mean()
