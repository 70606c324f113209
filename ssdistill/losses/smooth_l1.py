"""Smooth L1 distance between the student's regressed vectors and the teacher's."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from ssdistill.losses import Shapes
from ssdistill.losses.base.maps import MapChoice, MapNames
from ssdistill.losses.base.matching import PlainRegression
from ssdistill.models.heads import MapHead
from ssdistill.settings import Positive


class SmoothL1(PlainRegression):
    """Smooth L1 to the teacher's embedding or maps: mse, but linear above beta.

    L = mean f(h(s) - t), f(x) = x^2 / (2 beta) for |x| < beta, else |x| - beta / 2, over
    components, positions, images and views (arXiv:1504.08083, eq. 3, has beta = 1).

    ```yaml
    losses:
      feature: {kind: smooth_l1, beta: 1.0, weight: 1.0}
    ```

    Args:
        beta: difference from which on the loss is linear.
        read: compare the ``embedding``, or ``maps`` position by position.
        maps: with ``read: maps``, which ones: ``last`` (by default), ``middle``, ``stages``,
            ``final`` or names.
        head: ``linear``, ``conv`` (linear, batch norm, ReLU) or ``mlp``, at every position.
        normalize: divide each vector by its length first.
        center_teacher: subtract the teacher's mean first.

    Raises:
        UserError: maps that a network does not have, or ``maps`` with ``read: embedding``.
    """

    kind = "smooth_l1"
    paper = "Girshick, ICCV 2015, arXiv:1504.08083"
    accumulates = True

    def __init__(
        self,
        shapes: Shapes,
        *,
        beta: Positive = 1.0,
        read: Literal["embedding", "maps"] = "embedding",
        maps: MapChoice | MapNames | None = None,
        head: MapHead = "linear",
        normalize: bool = False,
        center_teacher: bool = False,
    ):
        super().__init__(shapes, read=read, maps=maps, head=head, center_teacher=center_teacher)
        self.beta, self.normalize = beta, normalize

    def distance(self, s_BCHW: Tensor, t_BCHW: Tensor) -> Tensor:
        if self.normalize:
            s_BCHW, t_BCHW = F.normalize(s_BCHW, dim=1), F.normalize(t_BCHW, dim=1)
        return F.smooth_l1_loss(s_BCHW, t_BCHW, reduction="none", beta=self.beta)
