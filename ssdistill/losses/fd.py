"""FD: distillation of whitened feature maps (Wei et al., 2022, arXiv:2205.14141)."""

import torch.nn.functional as F
from torch import Tensor

from ssdistill.data.batch import Batch
from ssdistill.losses import Shapes
from ssdistill.losses.base.maps import MapChoice, MapNames
from ssdistill.losses.base.matching import Regression
from ssdistill.models.heads import MapHead
from ssdistill.settings import Positive


class FD(Regression):
    """Regress the teacher's layer-normalized map at every position.

    L = mean smooth_l1(r(s), LN(t)), LN over the channels of a position without scale or shift, r
    a 1x1 convolution (arXiv:2205.14141). The paper also changes the student (shared relative
    position bias, drop path), which is a matter of its architecture.

    ```yaml
    losses:
      feature: {kind: fd, beta: 2.0, weight: 1.0}
    ```

    Args:
        beta: difference from which on the smooth L1 distance is linear.
        maps: which maps: ``last``, ``middle``, ``stages``, ``final`` or names.
        head: r: ``linear`` (the paper's), ``conv`` or ``mlp``.

    Raises:
        UserError: maps that a network does not have.
    """

    kind = "fd"
    paper = "Wei et al., 2022, arXiv:2205.14141"
    reads = "maps"
    exact_under_sharding = True
    accumulates = True

    def __init__(
        self,
        shapes: Shapes,
        *,
        beta: Positive = 2.0,
        maps: MapChoice | MapNames = "last",
        head: MapHead = "linear",
    ):
        super().__init__(shapes, reads="maps", maps=maps, head=head)
        self.beta = beta

    def targets(self, number: int, views: list[Tensor], batch: Batch) -> list[Tensor]:
        return [F.layer_norm(t.movedim(1, -1), t.shape[1:2]).movedim(-1, 1) for t in views]

    def distance(self, s_BCHW: Tensor, t_BCHW: Tensor) -> Tensor:
        return F.smooth_l1_loss(s_BCHW, t_BCHW, reduction="none", beta=self.beta)
