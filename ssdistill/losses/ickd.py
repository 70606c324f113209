"""ICKD: correlations between channels (Liu et al., ICCV 2021, arXiv:2202.03680)."""

import torch.nn.functional as F
from torch import Tensor, nn

from ssdistill.distributed import world_size
from ssdistill.losses import Shapes
from ssdistill.losses.base.maps import MapChoice, MapNames
from ssdistill.losses.base.relations import MapRelation, RelationHead
from ssdistill.models.heads import map_regressor


def channel_relations(x_BCHW: Tensor) -> Tensor:
    """Inner products (B, C, C) of the channels of each image, with rows of length 1."""
    x_BCN = x_BCHW.flatten(2)
    return F.normalize(x_BCN @ x_BCN.mT, dim=2)


def channel_difference(s_BCHW: Tensor, t_BCHW: Tensor) -> Tensor:
    """mean_b |difference of the channel relations|_F^2 / C."""
    difference_BCC = channel_relations(s_BCHW) - channel_relations(t_BCHW)
    return difference_BCC.square().sum() / (len(s_BCHW) * s_BCHW.shape[1])


class ICKD(MapRelation):
    """Match correlations between the channels of each image's map.

    L = 1/(C B^2) sum_b |R(F_b F_b^T) - R(T_b T_b^T)|_F^2, summed over pairs of maps, where T_b are
    the C channels of the teacher's map, F_b those of the student's through a 1x1 convolution, and
    R divides each row of a matrix by its length (arXiv:2202.03680). The maps may differ
    in size. The paper divides by C^2. torchdistill's code, followed here, divides by the batch
    size twice; that of the authors for CIFAR-100 does once and weighs 2.5, here 2.5 B. Theirs has
    a batch norm after the convolution.

    ```yaml
    losses:
      channels: {kind: ickd, maps: last, weight: 160}
    ```

    Args:
        maps: which maps are compared, see :class:`ssdistill.losses.base.maps.MapLoss`.
        head: from the student's channels to the teacher's: ``linear``, a 1x1 convolution, or
            ``mlp``, two of them with a ReLU between.

    Raises:
        UserError: a network without the requested maps.
    """

    kind = "ickd"
    paper = "Liu et al., ICCV 2021, arXiv:2202.03680"
    paper_weight = 160.0

    def __init__(
        self,
        shapes: Shapes,
        *,
        maps: MapChoice | MapNames = "last",
        head: RelationHead = "linear",
    ):
        super().__init__(shapes, maps)
        self.heads = nn.ModuleList(
            map_regressor(pair.student_shape[0], pair.teacher_shape[0], head)
            for pair in self.map_pairs
        )

    def compare(self, s_BCHW: Tensor, t_BCHW: Tensor) -> Tensor:
        return channel_difference(s_BCHW, t_BCHW) / (len(s_BCHW) * world_size())
