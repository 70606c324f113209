"""FitNets: hints from a middle layer (Romero et al., ICLR 2015, arXiv:1412.6550)."""

import torch.nn.functional as F
from torch import Tensor

from ssdistill.losses import Shapes
from ssdistill.losses.base.maps import MapChoice, MapNames
from ssdistill.losses.base.matching import Regression
from ssdistill.models.heads import MapHead


class FitNet(Regression):
    """Regress the teacher's middle feature map through a small regressor (hints).

    L = mean (r(s) - t)^2 over components and images, r a 1x1 convolution with batch norm and
    ReLU after the map has been brought to the teacher's size (arXiv:1412.6550, eq. 3). The paper
    trains the lower half on this alone first; the common code (weight 100), followed here, keeps
    it throughout. That ReLU suits a teacher whose maps end in one; for others take
    ``head: linear``.

    ```yaml
    losses:
      hint: {kind: fitnet, maps: middle, weight: 100.0}
    ```

    Args:
        maps: which maps: ``middle``, ``last``, ``stages`` or names.
        head: the regressor: ``conv`` (the paper's), ``linear`` or ``mlp``.

    Raises:
        UserError: maps that a network does not have.
    """

    kind = "fitnet"
    paper = "Romero et al., ICLR 2015, arXiv:1412.6550"
    accumulates = True
    paper_weight = 100.0
    reads = "maps"

    def __init__(
        self, shapes: Shapes, *, maps: MapChoice | MapNames = "middle", head: MapHead = "conv"
    ):
        super().__init__(shapes, reads="maps", maps=maps, head=head)

    def distance(self, s_BCHW: Tensor, t_BCHW: Tensor) -> Tensor:
        return F.mse_loss(s_BCHW, t_BCHW, reduction="none")
