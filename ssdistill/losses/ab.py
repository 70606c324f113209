"""AB: activation boundaries (Heo et al., AAAI 2019, arXiv:1811.03233)."""

import torch
from torch import Tensor, nn

from ssdistill.losses import Shapes
from ssdistill.losses.base.maps import MapChoice, MapNames, MapPair, resize_map
from ssdistill.losses.base.stage_maps import StageLoss, connector, deeper_counts_more
from ssdistill.settings import Positive

SCALE = 3 / 1000
"""Of the published code."""


def boundary_error(s_BCHW: Tensor, t_BCHW: Tensor, margin: float) -> Tensor:
    """Squared distance of s to the correct side of the margin, summed; mean over images.

    (s + m)^2 where t <= 0 and s > -m; (s - m)^2 where t > 0 and s <= m; in float32.
    """
    with torch.autocast(s_BCHW.device.type, enabled=False):
        side_BCHW = torch.where(t_BCHW > 0, 1.0, -1.0)
        short_BCHW = (margin - side_BCHW * s_BCHW.float()).relu()
        return short_BCHW.square().sum() / len(s_BCHW)


def connect(pair: MapPair) -> nn.Module:
    """Return a 1x1 convolution with batch norm, or an identity if the maps have equal shapes."""
    if pair.student_shape == pair.teacher_shape:
        return nn.Identity()
    return connector(pair.student_shape[0], pair.teacher_shape[0])


class AB(StageLoss):
    """Match activation boundaries: the signs of the teacher's pre-activations.

    L = 3/1000 sum_k 2^(k - K) E_k, E_k = sum over the channels and positions of stage k of
    max(0, m - sign(t) C(s))^2, averaged over images, with s and t the maps before the last ReLU
    of the stage, C a 1x1 convolution with batch norm (none between maps of one shape), and K the
    deepest stage (arXiv:1811.03233, with the factors of the published code). The student's
    map is put on the teacher's grid. The paper starts a student by this loss and then trains it
    by labels: without labels there is no second training.

    ```yaml
    losses:
      boundary: {kind: ab, maps: stages, weight: 1.0}
    ```

    Args:
        maps: which maps are paired, see :class:`~ssdistill.losses.base.maps.MapLoss`;
            named by stage.
        margin: m.

    Raises:
        UserError: a network none of whose stages ends in a ReLU, or without the one named.
    """

    kind = "ab"
    family = "attention and intermediate"
    paper = "Heo et al., AAAI 2019, arXiv:1811.03233"
    accumulates = True
    prefix = "before_relu"
    required = "stage that ends in a ReLU"

    def __init__(
        self, shapes: Shapes, *, maps: MapChoice | MapNames = "stages", margin: Positive = 1.0
    ):
        super().__init__(shapes, maps)
        self.margin = margin
        self.weights = [SCALE * weight for weight in deeper_counts_more(self.map_pairs)]
        self.connectors = nn.ModuleList(connect(pair) for pair in self.map_pairs)

    def pair_loss(self, k: int, s_BCHW: Tensor, t_BCHW: Tensor) -> Tensor:
        s_BCHW = self.connectors[k](resize_map(s_BCHW, t_BCHW.shape[2:]))
        return self.weights[k] * boundary_error(s_BCHW, t_BCHW, self.margin)
