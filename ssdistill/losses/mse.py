"""Mean squared error between the student's regressed vectors and the teacher's."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from ssdistill.losses import Shapes
from ssdistill.losses.base.maps import MapChoice, MapNames
from ssdistill.losses.base.matching import PlainRegression
from ssdistill.models.heads import MapHead


class MSE(PlainRegression):
    """Mean squared error to the teacher's embedding or maps through a head.

    L = mean (h(s) - t)^2 over components, positions, images and views; the baseline "Reg" of
    arXiv:2010.14713. With ``read: maps`` and the linear head it is the loss of LightlyTrain's
    distillation v2 (un-normalized patch tokens of the teacher).

    ```yaml
    losses:
      feature: {kind: mse, head: linear, weight: 1.0}
    ```

    Args:
        read: compare the ``embedding``, or ``maps`` position by position.
        maps: with ``read: maps``, which ones: ``last`` (by default), ``middle``, ``stages``,
            ``final`` or names.
        head: ``linear``, ``conv`` (linear, batch norm, ReLU) or ``mlp``, at every position.
        normalize: divide each vector by its length first.
        center_teacher: subtract the teacher's mean first.

    Raises:
        UserError: maps that a network does not have, or ``maps`` with ``read: embedding``.
    """

    kind = "mse"
    paper = "Abbasi Koohpayegani et al., NeurIPS 2020, arXiv:2010.14713"
    accumulates = True

    def __init__(
        self,
        shapes: Shapes,
        *,
        read: Literal["embedding", "maps"] = "embedding",
        maps: MapChoice | MapNames | None = None,
        head: MapHead = "linear",
        normalize: bool = False,
        center_teacher: bool = False,
    ):
        super().__init__(shapes, read=read, maps=maps, head=head, center_teacher=center_teacher)
        self.normalize = normalize

    def distance(self, s_BCHW: Tensor, t_BCHW: Tensor) -> Tensor:
        if self.normalize:
            s_BCHW, t_BCHW = F.normalize(s_BCHW, dim=1), F.normalize(t_BCHW, dim=1)
        return F.mse_loss(s_BCHW, t_BCHW, reduction="none")
