"""OFD: a comprehensive overhaul of feature distillation (Heo et al., 2019, arXiv:1904.01866)."""

import math

import torch
from torch import Tensor, nn

from ssdistill.losses import Shapes
from ssdistill.losses.base.maps import MapChoice, MapNames, MapPair, resize_map
from ssdistill.losses.base.stage_maps import StageLoss, connector, deeper_counts_more

RARE = 1e-3
"""Probability of a negative value below which its mean is not computed."""


def margins(mean_C: Tensor, std_C: Tensor) -> Tensor:
    """Mean of a Gaussian's negative part, E[x | x < 0]; -3 std if negative values are rare.

    mean - std phi(mean / std) / Phi(-mean / std), phi and Phi the standard normal density and
    distribution; -3 std where Phi(-mean / std) is not above 0.001.
    """
    mean_C, std_C = mean_C.cpu().double(), std_C.cpu().double().clamp_min(1e-12)
    ratio_C = mean_C / std_C
    below_C = torch.special.ndtr(-ratio_C)
    density_C = (-ratio_C.square() / 2).exp() / math.sqrt(2 * math.pi)
    tail_C = mean_C - std_C * density_C / below_C.clamp_min(RARE)
    return torch.where(below_C > RARE, tail_C, -3 * std_C).float()


def partial_distance(s_BCHW: Tensor, t_BCHW: Tensor, margin_C: Tensor) -> Tensor:
    """Squared distance of s from max(t, margin), summed; mean over images, in float32.

    Where the teacher is not positive, only what exceeds its target counts.
    """
    with torch.autocast(s_BCHW.device.type, enabled=False):
        target_BCHW = torch.maximum(t_BCHW.float(), margin_C[:, None, None])
        excess_BCHW = s_BCHW.float() - target_BCHW
        counted_BCHW = torch.where(t_BCHW > 0, excess_BCHW, excess_BCHW.relu())
        return counted_BCHW.square().sum() / len(s_BCHW)


class Stage(nn.Module):
    """Connector of the student's map, and its distance to the teacher's map."""

    margin_C: Tensor

    def __init__(self, pair: MapPair, margin_C: Tensor):
        super().__init__()
        self.connector = connector(pair.student_shape[0], pair.teacher_shape[0])
        self.register_buffer("margin_C", margin_C)

    def forward(self, s_BCHW: Tensor, t_BCHW: Tensor) -> Tensor:
        t_BCHW = resize_map(t_BCHW, s_BCHW.shape[2:])
        return partial_distance(self.connector(s_BCHW), t_BCHW, self.margin_C)


class OFD(StageLoss):
    """Match pre-ReLU feature maps with a margin for negative values.

    L = sum_k 2^(k - K) d(C(s), max(t, m)), with s and t the maps before the last ReLU of stage k,
    C a 1x1 convolution with batch norm, K the deepest stage and d the squared distance, summed
    over channels and positions and averaged over images, but 0 where t <= 0 and
    C(s) <= max(t, m). m is, per channel, the mean of what the teacher's last batch norm before
    the ReLU makes negative, E[x | x < 0] of the Gaussian with its bias and weight
    (arXiv:1904.01866; as coded, m = -3 |weight| where values below 0 are rarer than 0.001).
    The teacher's map is put on the student's grid. A sum over the map is large: the published
    weight is 0.001.

    ```yaml
    losses:
      overhaul: {kind: ofd, maps: stages, weight: 0.001}
    ```

    Args:
        maps: which maps are paired, see :class:`~ssdistill.losses.base.maps.MapLoss`;
            named by stage.

    Raises:
        UserError: a network none of whose stages ends in a ReLU, or without the one named, or a
            teacher without batch norm before that ReLU.
    """

    kind = "ofd"
    family = "attention and intermediate"
    paper = "Heo et al., ICCV 2019, arXiv:1904.01866"
    accumulates = True
    paper_weight = 0.001
    prefix = "before_relu"
    required = "stage that ends in a ReLU"

    def __init__(self, shapes: Shapes, *, maps: MapChoice | MapNames = "stages"):
        super().__init__(shapes, maps)
        self.weights = deeper_counts_more(self.map_pairs)
        self.stages = nn.ModuleList(Stage(pair, self._margin(pair)) for pair in self.map_pairs)

    def _margin(self, pair: MapPair) -> Tensor:
        stage = pair.teacher.removeprefix(f"{self.prefix}:")
        if stage not in self.shapes.teacher_norms:
            name = self.shapes.teacher_name
            raise self.fail(
                f"the teacher ({name}) has no batch norm before the ReLU of '{stage}'; "
                "choose other maps"
            )
        return margins(*self.shapes.teacher_norms[stage])

    def pair_loss(self, k: int, s_BCHW: Tensor, t_BCHW: Tensor) -> Tensor:
        return self.weights[k] * self.stages[k](s_BCHW, t_BCHW)
