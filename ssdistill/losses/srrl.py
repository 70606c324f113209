"""SRRL's feature term: the means of the last maps (Yang et al., ICLR 2021)."""

import torch.nn.functional as F
from torch import Tensor

from ssdistill.losses import Shapes
from ssdistill.losses.base.maps import MapChoice, MapNames
from ssdistill.losses.base.matching import Regression
from ssdistill.models.heads import MapHead


class SRRL(Regression):
    """Match the channel means of the last feature map through an adapter.

    L = mean (m(r(s)) - m(t))^2 over channels and images, m the mean over positions and r a 1x1
    convolution with batch norm and ReLU (Yang et al., ICLR 2021; the statistics of
    arXiv:2003.04289, of which the published code keeps the mean). This is the feature term. The
    other term compares what the teacher's classifier makes of r(s) and of t, and is omitted:
    without labels there is no classifier.

    ```yaml
    losses:
      feature: {kind: srrl, weight: 1.0}
    ```

    Args:
        maps: which maps: ``last``, ``middle``, ``stages``, ``final`` or names.
        head: the adapter: ``conv`` (the paper's), ``linear`` or ``mlp``.

    Raises:
        UserError: maps that a network does not have.
    """

    kind = "srrl"
    paper = "Yang et al., ICLR 2021, cf. arXiv:2003.04289"
    accumulates = True
    reads = "maps"

    def __init__(
        self, shapes: Shapes, *, maps: MapChoice | MapNames = "last", head: MapHead = "conv"
    ):
        super().__init__(shapes, reads="maps", maps=maps, head=head)

    def distance(self, s_BCHW: Tensor, t_BCHW: Tensor) -> Tensor:
        return F.mse_loss(s_BCHW.mean((2, 3)), t_BCHW.mean((2, 3)), reduction="none")
