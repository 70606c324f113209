"""AT: attention transfer (Zagoruyko and Komodakis, ICLR 2017, arXiv:1612.03928)."""

import torch
from torch import Tensor

from ssdistill.losses import Shapes
from ssdistill.losses.base.maps import MapChoice, MapNames
from ssdistill.losses.base.stage_maps import StageLoss, on_the_coarser_grid, spatial_attention
from ssdistill.settings import PositiveInt


def attention_difference(s_BCHW: Tensor, t_BCHW: Tensor, power: int = 2) -> Tensor:
    """Mean over images and positions of the squared difference in attention, in float32."""
    with torch.autocast(s_BCHW.device.type, enabled=False):
        s_BCHW, t_BCHW = on_the_coarser_grid(s_BCHW, t_BCHW)
        difference_BN = spatial_attention(s_BCHW, power) - spatial_attention(t_BCHW, power)
        return difference_BN.square().mean()


class AT(StageLoss):
    """Match spatial attention maps.

    L = sum over pairs of maps of mean_(b,i) (a_bi(s) - a_bi(t))^2, a(x) = n(mean_c |x_c|^p),
    n(x) = x / |x| over the positions i, the finer map averaged onto the grid of the coarser
    (arXiv:1612.03928). The paper adds up over positions, the published code takes the mean, which
    is why its weight is 1000.

    ```yaml
    losses:
      attention: {kind: at, maps: stages, weight: 1000.0}
    ```

    Args:
        maps: which maps are paired, see :class:`ssdistill.losses.base.maps.MapLoss`.
        power: p.

    Raises:
        UserError: a network without feature maps, or without the one named.
    """

    kind = "at"
    family = "attention and intermediate"
    paper = "Zagoruyko and Komodakis, ICLR 2017, arXiv:1612.03928"
    paper_weight = 1000.0
    exact_under_sharding = True
    accumulates = True
    minimum_at_teacher = True

    def __init__(
        self, shapes: Shapes, *, maps: MapChoice | MapNames = "stages", power: PositiveInt = 2
    ):
        super().__init__(shapes, maps)
        self.power = power

    def pair_loss(self, k: int, s_BCHW: Tensor, t_BCHW: Tensor) -> Tensor:
        return attention_difference(s_BCHW, t_BCHW, self.power)
