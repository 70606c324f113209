"""NST: neuron selectivity transfer (Huang and Wang, 2017, arXiv:1707.01219)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ssdistill.losses import Shapes
from ssdistill.losses.base.maps import MapChoice, MapNames
from ssdistill.losses.base.stage_maps import StageLoss, on_the_coarser_grid


def mean_kernel(x_BCN: Tensor, y_BDN: Tensor) -> Tensor:
    """Mean over images and pairs of channels of (x·y)^2."""
    return (x_BCN @ y_BDN.mT).square().mean()


def selectivity_discrepancy(s_BCHW: Tensor, t_BCHW: Tensor) -> Tensor:
    """MMD^2 between the channels of two maps, each a vector of length 1 over the positions.

    mean k(t_c, t_d) + mean k(s_c, s_d) - 2 mean k(s_c, t_d) per image with k(x, y) = (x·y)^2,
    in float32, on the coarser grid of the two. The numbers of channels may differ.
    """
    with torch.autocast(s_BCHW.device.type, enabled=False):
        s_BCHW, t_BCHW = on_the_coarser_grid(s_BCHW, t_BCHW)
        s_BCN = F.normalize(s_BCHW.flatten(2), dim=2)
        t_BDN = F.normalize(t_BCHW.flatten(2), dim=2)
        own = mean_kernel(t_BDN, t_BDN) + mean_kernel(s_BCN, s_BCN)
        return own - 2 * mean_kernel(s_BCN, t_BDN)


class NST(StageLoss):
    """Maximum mean discrepancy (MMD) between channel activation patterns.

    L = sum over pairs of maps of MMD^2 between the channels of the student and those of the
    teacher, each normalized over the positions, with the paper's polynomial kernel,
    k(x, y) = (x·y)^2 (arXiv:1707.01219). The finer map is averaged onto the grid of the coarser.

    ```yaml
    losses:
      selectivity: {kind: nst, maps: stages, weight: 50.0}
    ```

    Args:
        maps: which maps are paired, see :class:`ssdistill.losses.base.maps.MapLoss`.

    Raises:
        UserError: a network without feature maps, or without the one named.
    """

    kind = "nst"
    family = "attention and intermediate"
    paper = "Huang and Wang, 2017, arXiv:1707.01219"
    paper_weight = 50.0
    exact_under_sharding = True
    accumulates = True
    minimum_at_teacher = True

    def __init__(self, shapes: Shapes, *, maps: MapChoice | MapNames = "stages"):
        super().__init__(shapes, maps)

    def pair_loss(self, k: int, s_BCHW: Tensor, t_BCHW: Tensor) -> Tensor:
        return selectivity_discrepancy(s_BCHW, t_BCHW)
