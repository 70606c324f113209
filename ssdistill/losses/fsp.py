"""FSP: flow of the solution procedure (Yim et al., CVPR 2017)."""

from itertools import pairwise

import torch
from einops import einsum
from torch import Tensor, nn

from ssdistill.losses import Shapes
from ssdistill.losses.base.maps import MapChoice, MapNames
from ssdistill.losses.base.stage_maps import Maps, StageLoss, on_the_coarser_grid
from ssdistill.models.heads import map_regressor


def flow(x_BCHW: Tensor, y_BDHW: Tensor) -> Tensor:
    """Mean over positions of x_c y_d, (B, C, D) in float32, on the coarser of the two grids."""
    with torch.autocast(x_BCHW.device.type, enabled=False):
        x_BCHW, y_BDHW = on_the_coarser_grid(x_BCHW, y_BDHW)
        product_BCD = einsum(x_BCHW, y_BDHW, "b c h w, b d h w -> b c d")
        return product_BCD / x_BCHW[0, 0].numel()


def flow_difference(s_maps: list[Tensor], t_maps: list[Tensor]) -> list[Tensor]:
    """Mean squared difference of both networks' flows between consecutive maps."""
    s_flows, t_flows = (
        [flow(first, second) for first, second in pairwise(maps)] for maps in (s_maps, t_maps)
    )
    return [(s - t).square().mean() for s, t in zip(s_flows, t_flows, strict=True)]


class FSP(StageLoss):
    """Match channel Gram matrices between consecutive network stages.

    L = sum over consecutive stages of mean_(b,c,d) (G_bcd(s) - G_bcd(t))^2 with
    G_cd(x) = mean over positions of x_c y_d, x and y the maps of a stage and of the next (Yim et
    al., CVPR 2017, eq. 1 and 2; the setting and weight are those of arXiv:1910.10699). The
    finer map is averaged onto the grid of the coarser. The paper needs equal channels; here a
    head on the student's map makes them equal where they are not. The paper trains by this
    loss alone first and then by labels: without labels there is no second training.

    ```yaml
    losses:
      flow: {kind: fsp, maps: stages, weight: 50.0}
    ```

    Args:
        maps: which maps are paired, at least two, see :class:`ssdistill.losses.base.maps.MapLoss`.

    Raises:
        UserError: fewer than two maps, a network without feature maps, or without the one named.
    """

    kind = "fsp"
    family = "attention and intermediate"
    paper = "Yim et al., CVPR 2017; as in arXiv:1910.10699"
    paper_weight = 50.0
    exact_under_sharding = True
    accumulates = True
    minimum_at_teacher = True

    def __init__(self, shapes: Shapes, *, maps: MapChoice | MapNames = "stages"):
        super().__init__(shapes, maps)
        if len(self.map_pairs) < 2:
            raise self.fail("maps names one map; set maps=stages or name at least two")
        widths = [(pair.student_shape[0], pair.teacher_shape[0]) for pair in self.map_pairs]
        self.heads = nn.ModuleList(
            nn.Identity()
            if student_width == teacher_width
            else map_regressor(student_width, teacher_width)
            for student_width, teacher_width in widths
        )

    def view_loss(self, maps: Maps) -> Tensor:
        student_maps = [head(s) for head, (s, _) in zip(self.heads, maps, strict=True)]
        return torch.stack(flow_difference(student_maps, [t for _, t in maps])).sum()
