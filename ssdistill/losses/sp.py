"""SP: similarity-preserving distillation (Tung and Mori, ICCV 2019, arXiv:1907.09682)."""

import torch.nn.functional as F
from torch import Tensor

from ssdistill.losses import Shapes
from ssdistill.losses.base.maps import MapChoice, MapNames
from ssdistill.losses.base.relations import MapRelation, whole_batch


def similarity_difference(s_BD: Tensor, t_BE: Tensor) -> Tensor:
    """|R(S S^T) - R(T T^T)|_F^2 / B^2, R dividing each row by its length."""
    student_BB, teacher_BB = F.normalize(s_BD @ s_BD.T, dim=1), F.normalize(t_BE @ t_BE.T, dim=1)
    return F.mse_loss(student_BB, teacher_BB)


class SP(MapRelation):
    """Match similarities between the images of a batch, computed from feature maps.

    L = |R(S S^T) - R(T T^T)|_F^2 / B^2, summed over pairs of maps, where the rows of S and T are
    the maps, flattened and not normalized, and R divides each row of a matrix by its length
    (arXiv:1907.09682). The maps may differ in channels and in size.

    ```yaml
    losses:
      relation: {kind: sp, maps: last, weight: 3000}
    ```

    Args:
        maps: which maps are compared, see :class:`ssdistill.losses.base.maps.MapLoss`.

    Raises:
        UserError: a network without the requested maps.
    """

    kind = "sp"
    paper = "Tung and Mori, ICCV 2019, arXiv:1907.09682"
    paper_weight = 3000.0
    minimum_at_teacher = True

    def __init__(self, shapes: Shapes, *, maps: MapChoice | MapNames = "last"):
        super().__init__(shapes, maps)

    def compare(self, s_BCHW: Tensor, t_BCHW: Tensor) -> Tensor:
        return similarity_difference(whole_batch(s_BCHW.flatten(1)), whole_batch(t_BCHW.flatten(1)))
