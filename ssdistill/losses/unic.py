"""UNIC: cosine and smooth L1 to standardized targets (Sariyildiz et al., ECCV 2024)."""

import torch.nn.functional as F
from torch import Tensor

from ssdistill.losses import Shapes
from ssdistill.losses.base.dropping import kept_weights
from ssdistill.losses.base.maps import MapChoice, MapNames
from ssdistill.losses.base.matching import StandardizedRegression
from ssdistill.models.heads import MapHead
from ssdistill.settings import Fraction, NonNegative


def cosine_and_smooth_l1(
    s_BCHW: Tensor, t_BCHW: Tensor, cosine_weight: float, smooth_l1_weight: float
) -> Tensor:
    """w_cos (1 - cos(s, t)) + w_l1 smooth_l1(s, t), averaged over positions, per image."""
    cosine_B = (1 - F.cosine_similarity(s_BCHW, t_BCHW, dim=1)).mean((1, 2))
    smooth_l1_B = F.smooth_l1_loss(s_BCHW, t_BCHW, reduction="none").mean((1, 2, 3))
    return cosine_weight * cosine_B + smooth_l1_weight * smooth_l1_B


def mean_over_kept_teachers(loss_TB: Tensor, dropped_TB: Tensor) -> Tensor:
    """Mean loss over the teacher-image pairs that are not dropped.

    The teacher an image has the largest loss with is kept whatever ``dropped_TB`` (bool) says.
    """
    return (kept_weights(loss_TB, dropped_TB) * loss_TB).mean()


class UNIC(StandardizedRegression):
    """Cosine and smooth L1 regression of standardized teacher embeddings and patches.

    L = mean over embedding and maps of 0.5 (1 - cos(h(s), t')) + 0.5 smooth_l1(h(s), t'),
    t' = (t - mean) / std by running statistics of each channel, which a batch updates after it
    has been standardized (arXiv:2408.05088; so step 0 sees the teacher's own values). Beside
    this, the paper drops teachers of low loss at random, as ``teacher_dropping`` does where there
    are several (:func:`mean_over_kept_teachers`), and sums an MLP of every block where ``head``
    reads one.

    ```yaml
    losses:
      feature: {kind: unic, weight: 1.0}
    ```

    Args:
        maps: which maps join the embedding: ``last``, ``middle``, ``stages``, ``final`` or names.
        head: ``mlp``, ``linear`` or ``conv``, at every position.
        cosine_weight: of the cosine distance.
        smooth_l1_weight: of the smooth L1 distance.
        statistics_end: fraction of a batch in the running statistics at the end of the training;
            it falls to it from 1 by a cosine.

    Raises:
        UserError: maps that a network does not have.
    """

    kind = "unic"
    paper = "Sariyildiz et al., ECCV 2024, arXiv:2408.05088"
    reads = "embedding, maps"

    def __init__(
        self,
        shapes: Shapes,
        *,
        maps: MapChoice | MapNames = "last",
        head: MapHead = "mlp",
        cosine_weight: NonNegative = 0.5,
        smooth_l1_weight: NonNegative = 0.5,
        statistics_end: Fraction = 0.001,
    ):
        super().__init__(
            shapes, reads="embedding, maps", maps=maps, head=head, statistics_end=statistics_end
        )
        self.weights = cosine_weight, smooth_l1_weight

    def distance(self, s_BCHW: Tensor, t_BCHW: Tensor) -> Tensor:
        return cosine_and_smooth_l1(s_BCHW, t_BCHW, *self.weights)
