"""Cosine distance between the student's regressed vectors and the teacher's."""

import torch.nn.functional as F
from torch import Tensor

from ssdistill.losses.base.matching import PlainRegression


class Cosine(PlainRegression):
    """Cosine regression of the teacher's embedding or maps through a head.

    L = mean (1 - cos(h(s), t)) over positions, images and views; the summary loss of
    arXiv:2312.06709. ``simreg`` is twice this with a deeper head.

    ```yaml
    losses:
      feature: {kind: cosine, head: linear, weight: 1.0}
    ```

    Args:
        read: compare the ``embedding``, or ``maps`` position by position.
        maps: with ``read: maps``, which ones: ``last`` (by default), ``middle``, ``stages``,
            ``final`` or names.
        head: ``linear``, ``conv`` (linear, batch norm, ReLU) or ``mlp``, at every position.
        center_teacher: subtract the teacher's mean first.

    Raises:
        UserError: maps that a network does not have, or ``maps`` with ``read: embedding``.
    """

    kind = "cosine"
    paper = "Ranzinger et al., CVPR 2024, arXiv:2312.06709"
    accumulates = True

    def distance(self, s_BCHW: Tensor, t_BCHW: Tensor) -> Tensor:
        return 1 - F.cosine_similarity(s_BCHW, t_BCHW, dim=1)
