"""VID: variational information distillation (Ahn et al., CVPR 2019, arXiv:1904.05835)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssdistill.losses import Shapes
from ssdistill.losses.base.maps import MapChoice, MapNames, MapPair
from ssdistill.losses.base.stage_maps import StageLoss, on_the_coarser_grid
from ssdistill.settings import Positive

EPS = 1e-5
"""Minimum variance."""


def gaussian_surprise(mean_BCHW: Tensor, target_BCHW: Tensor, log_scale_C: Tensor) -> Tensor:
    """mean ((mu - t)^2 / v + log v) / 2 with v = log(1 + e^a) + 1e-5 per channel, in float32."""
    with torch.autocast(mean_BCHW.device.type, enabled=False):
        variance_C11 = (F.softplus(log_scale_C.float()) + EPS)[:, None, None]
        squared_BCHW = (mean_BCHW.float() - target_BCHW.float()).square()
        return 0.5 * (squared_BCHW / variance_C11 + variance_C11.log()).mean()


class Guess(nn.Module):
    """Gaussian prediction of the teacher's map from the student's.

    Three 1x1 convolutions without biases give its mean; the variance, one number per channel,
    is learned too and starts at ``variance``.
    """

    def __init__(self, pair: MapPair, variance: float):
        super().__init__()
        (student_width, *_), (teacher_width, *_) = pair.student_shape, pair.teacher_shape
        self.regressor = nn.Sequential(
            nn.Conv2d(student_width, teacher_width, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(teacher_width, teacher_width, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(teacher_width, teacher_width, 1, bias=False),
        )
        start = math.log(math.expm1(variance - EPS))
        self.log_scale = nn.Parameter(torch.full((teacher_width,), start))

    def forward(self, s_BCHW: Tensor, t_BCHW: Tensor) -> Tensor:
        s_BCHW, t_BCHW = on_the_coarser_grid(s_BCHW, t_BCHW)
        return gaussian_surprise(self.regressor(s_BCHW), t_BCHW, self.log_scale)


class VID(StageLoss):
    """Variational lower bound on the mutual information of feature maps.

    L = sum over pairs of maps of mean ((mu(s) - t)^2 / v + log v) / 2, mu three 1x1
    convolutions, v = log(1 + e^a) + 1e-5 with one learned a per channel (arXiv:1904.05835): less
    a constant, a bound on the information that the two share, so that it may be negative. The
    finer map is averaged onto the grid of the coarser.

    ```yaml
    losses:
      information: {kind: vid, maps: stages, weight: 1.0}
    ```

    Args:
        maps: which maps are paired, see :class:`ssdistill.losses.base.maps.MapLoss`.
        initial_variance: v at the start; above 1e-5.

    Raises:
        UserError: a network without feature maps, or without the one named.
    """

    kind = "vid"
    family = "attention and intermediate"
    paper = "Ahn et al., CVPR 2019, arXiv:1904.05835"
    exact_under_sharding = True
    accumulates = True

    def __init__(
        self,
        shapes: Shapes,
        *,
        maps: MapChoice | MapNames = "stages",
        initial_variance: Positive = 5.0,
    ):
        super().__init__(shapes, maps)
        if initial_variance <= EPS:
            raise self.fail(f"initial_variance={initial_variance} must be above {EPS}")
        self.guesses = nn.ModuleList(Guess(pair, initial_variance) for pair in self.map_pairs)

    def pair_loss(self, k: int, s_BCHW: Tensor, t_BCHW: Tensor) -> Tensor:
        return self.guesses[k](s_BCHW, t_BCHW)
