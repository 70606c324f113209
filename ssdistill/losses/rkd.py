"""RKD: distances and angles among the images of a batch (Park et al., CVPR 2019)."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ssdistill.losses import Read, Shapes
from ssdistill.losses.base.relations import VectorRelation
from ssdistill.settings import NonNegative, PositiveInt

EPS = 1e-12


def centered_gram(x_BD: Tensor) -> Tensor:
    """Inner products (B, B) about the batch mean.

    Distances and angles do not depend on the origin; what cancels in them does.
    """
    x_BD = x_BD - x_BD.mean(0)
    return x_BD @ x_BD.T


def squared_distances(gram_BB: Tensor) -> Tensor:
    """|x_i - x_j|^2 from inner products."""
    square_B = gram_BB.diagonal()
    return square_B[:, None] + square_B[None, :] - 2 * gram_BB


def relative_distances(gram_BB: Tensor) -> Tensor:
    """|x_i - x_j| over its mean for i != j; 0 on the diagonal."""
    count = len(gram_BB)
    itself_BB = torch.eye(count, dtype=torch.bool, device=gram_BB.device)
    # Clamped, the root has a finite slope where two vectors coincide.
    distance_BB = squared_distances(gram_BB).clamp(min=EPS).sqrt().masked_fill(itself_BB, 0)
    mean = distance_BB.sum() / max(1, count * (count - 1))
    return distance_BB / mean.clamp(min=EPS)


def distance_difference(gram_s_BB: Tensor, gram_t_BB: Tensor) -> Tensor:
    """Mean of smooth_l1 over the B^2 relative distances."""
    return F.smooth_l1_loss(relative_distances(gram_s_BB), relative_distances(gram_t_BB))


def angles(gram_BB: Tensor, anchor_A: Tensor) -> Tensor:
    """Cosines (A, B, B) of the angles between x_j and x_k as seen from each anchor x_i.

    Where x_j or x_k coincides with the anchor the cosine is 0, and has no gradient.
    """
    from_anchor_AB = gram_BB[anchor_A]
    own_A1 = from_anchor_AB.gather(1, anchor_A[:, None])
    squared_AB = own_A1 + gram_BB.diagonal() - 2 * from_anchor_AB
    inverse_AB = torch.where(squared_AB > EPS, squared_AB.clamp(min=EPS).rsqrt(), 0)
    # (x_j - x_i)·(x_k - x_i), without ever forming the B^2 differences themselves.
    offset_AB = from_anchor_AB - own_A1 / 2
    product_ABB = gram_BB - offset_AB[:, :, None] - offset_AB[:, None, :]
    return product_ABB * inverse_AB[:, :, None] * inverse_AB[:, None, :]


def angle_difference(gram_s_BB: Tensor, gram_t_BB: Tensor, chunk: int) -> Tensor:
    """Mean of smooth_l1 over the B^3 cosines, ``chunk`` anchors at a time.

    The backward pass recomputes each chunk's cosines: no more than chunk B^2 of them exist
    at any time.
    """

    def of_anchors(gram_s_BB: Tensor, gram_t_BB: Tensor, anchor_A: Tensor) -> Tensor:
        student_angles, teacher_angles = angles(gram_s_BB, anchor_A), angles(gram_t_BB, anchor_A)
        return F.smooth_l1_loss(student_angles, teacher_angles, reduction="sum")

    count = len(gram_s_BB)
    total = gram_s_BB.new_zeros(())
    for anchor_A in torch.arange(count, device=gram_s_BB.device).split(chunk):
        total = total + checkpoint(
            of_anchors,
            gram_s_BB,
            gram_t_BB,
            anchor_A,
            use_reentrant=False,
            preserve_rng_state=False,
        )
    return total / count**3


class RKD(VectorRelation):
    """Match pairwise distances and angles of triplets within a batch.

    With d_ij = |x_i - x_j| / mean |x_k - x_l| and a_ijk the cosine of the angle at x_i between
    x_j and x_k, for student and teacher vectors x:

    L = w_d mean_ij h(d^s_ij, d^t_ij) + w_a mean_ijk h(a^s_ijk, a^t_ijk), h = smooth L1

    (arXiv:1904.05068). Neither term needs vectors of one width. The
    angles are computed for ``chunk`` images at a time, in the backward pass once more: memory is
    chunk B^2 numbers instead of B^3.

    ```yaml
    losses:
      relation: {kind: rkd, distance_weight: 25, angle_weight: 50, weight: 1.0}
    ```

    Args:
        distance_weight: w_d.
        angle_weight: w_a.
        chunk: images whose angles are in memory together; the loss does not depend on it.
        read: the teacher's vector: ``embedding``, or ``projection`` of its self-supervised head.

    Raises:
        UserError: for ``read: projection`` and a teacher without one.
    """

    kind = "rkd"
    paper = "Park et al., CVPR 2019, arXiv:1904.05068"
    reads = "embedding"
    minimum_at_teacher = True

    def __init__(
        self,
        shapes: Shapes,
        *,
        distance_weight: NonNegative = 25.0,
        angle_weight: NonNegative = 50.0,
        chunk: PositiveInt = 16,
        read: Read = "embedding",
    ):
        super().__init__(shapes, read)
        self.distance_weight, self.angle_weight = distance_weight, angle_weight
        self.chunk = chunk

    def relation(self, s_BD: Tensor, t_BD: Tensor) -> Tensor:
        gram_s_BB, gram_t_BB = centered_gram(s_BD), centered_gram(t_BD)
        loss = self.distance_weight * distance_difference(gram_s_BB, gram_t_BB)
        if self.angle_weight:
            loss = loss + self.angle_weight * angle_difference(gram_s_BB, gram_t_BB, self.chunk)
        return loss
