"""PKT: probabilistic knowledge transfer (Passalis and Tefas, ECCV 2018, arXiv:1803.10837)."""

import torch.nn.functional as F
from torch import Tensor

from ssdistill.losses import Read, Shapes
from ssdistill.losses.base.relations import VectorRelation

EPS = 1e-7


def affinities(x_BD: Tensor) -> Tensor:
    """(B, B), rows summing to 1: (1 + cosine) / 2 over its sum."""
    x_BD = F.normalize(x_BD, dim=1, eps=EPS)
    kernel_BB = (x_BD @ x_BD.T + 1) / 2
    return kernel_BB / kernel_BB.sum(1, keepdim=True)


def affinity_divergence(s_BD: Tensor, t_BE: Tensor) -> Tensor:
    """mean_ij p_ij log(p_ij / q_ij), p and q the affinities of teacher and student."""
    p_BB, q_BB = affinities(t_BE), affinities(s_BD)
    # log((p + e) / (q + e)), exact also where p and q are close.
    return (p_BB * ((p_BB - q_BB) / (q_BB + EPS)).log1p()).mean()


class PKT(VectorRelation):
    """Match affinities between the images of a batch as probabilities.

    L = 1/B^2 sum_ij p_ij log(p_ij / q_ij), with p_ij = k_ij / sum_l k_il, k_ij = (1 + cos_ij) / 2
    the cosine kernel of the teacher's vectors i and j, itself included, and q that of the
    student's (arXiv:1803.10837). The paper sums where the published code takes the mean
    over B^2, hence its weight of 30000.

    ```yaml
    losses:
      relation: {kind: pkt, weight: 30000}
    ```

    Args:
        read: the teacher's vector: ``embedding``, or ``projection`` of its self-supervised head.

    Raises:
        UserError: for ``read: projection`` and a teacher without one.
    """

    kind = "pkt"
    paper = "Passalis and Tefas, ECCV 2018, arXiv:1803.10837"
    paper_weight = 30000.0
    reads = "embedding"
    minimum_at_teacher = True

    def __init__(self, shapes: Shapes, *, read: Read = "embedding"):
        super().__init__(shapes, read)

    def relation(self, s_BD: Tensor, t_BD: Tensor) -> Tensor:
        return affinity_divergence(s_BD, t_BD)
