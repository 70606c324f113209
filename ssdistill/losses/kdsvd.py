"""KD-SVD: singular vectors of network stages (Lee et al., ECCV 2018, arXiv:1807.06819)."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssdistill.losses import Shapes
from ssdistill.losses.base.maps import MapChoice, MapNames, tokens
from ssdistill.losses.base.relations import MapRelation, RelationHead
from ssdistill.models.heads import map_regressor
from ssdistill.settings import PositiveInt

SPARE = 3
"""Candidate vectors of the student, besides the k leading ones."""
TINY = 1e-4
"""Fraction of the largest squared singular value below which two values count as equal."""
EPS = 1e-12


class RightVectors(torch.autograd.Function):
    """The ``count`` leading right singular vectors of each matrix, and their singular values.

    The gradient of vector j has terms 1 / (s_j^2 - s_i^2) and, outside the span of all vectors,
    1 / s_j. Both are replaced by x / (x^2 + e^2), e small against s_1: where singular values
    coincide or vanish, and the vectors are not defined, the gradient stays finite. The singular
    values carry no gradient.
    """

    @staticmethod
    def forward(ctx, x_BNC: Tensor, count: int) -> tuple[Tensor, Tensor]:
        u_BNR, s_BR, vt_BRC = torch.linalg.svd(x_BNC, full_matrices=False)
        ctx.save_for_backward(u_BNR, s_BR, vt_BRC)
        s_Bk = s_BR[:, :count].clone()
        ctx.mark_non_differentiable(s_Bk)
        return vt_BRC[:, :count].mT.contiguous(), s_Bk

    @staticmethod
    def backward(ctx, grad_BCk: Tensor, _: Tensor) -> tuple[Tensor, None]:
        u_BNR, s_BR, vt_BRC = ctx.saved_tensors
        count = grad_BCk.shape[2]
        u_BNk, s_Bk, vt_BkC = u_BNR[..., :count], s_BR[:, :count], vt_BRC[:, :count]
        largest_B11 = s_BR[:, :1, None].square().clamp(min=EPS)
        gap_BRk = (s_Bk[:, None, :].square() - s_BR[:, :, None].square()) / largest_B11
        inverse_BRk = gap_BRk / (gap_BRk.square() + TINY**2) / largest_B11

        inner_BRk = vt_BRC @ grad_BCk
        turn_BRk = inner_BRk * inverse_BRk
        within_BNC = (u_BNk * s_Bk[:, None, :]) @ turn_BRk.mT @ vt_BRC
        within_BNC = within_BNC + (u_BNR * s_BR[:, None, :]) @ turn_BRk @ vt_BkC
        outside_BCk = grad_BCk - vt_BRC.mT @ inner_BRk
        inverse_Bk = s_Bk / (s_Bk.square() + TINY**2 * largest_B11[:, :, 0])
        return within_BNC + (u_BNk * inverse_Bk[:, None, :]) @ outside_BCk.mT, None


def aligned(s_BCK: Tensor, t_BCk: Tensor) -> Tensor:
    """For each teacher vector, pick the student's of largest |cosine|, with the same sign."""
    cosine_BKk = s_BCK.mT @ t_BCk
    index_B1k = cosine_BKk.abs().argmax(1, keepdim=True)
    sign_B1k = torch.where(cosine_BKk.gather(1, index_B1k) < 0, -1.0, 1.0).to(s_BCK.dtype)
    return s_BCK.gather(2, index_B1k.expand(-1, s_BCK.shape[1], -1)) * sign_B1k


def with_fixed_signs(v_BCk: Tensor) -> Tensor:
    """Flip vectors so that their entry of largest magnitude is positive."""
    return v_BCk * v_BCk.gather(1, v_BCk.abs().argmax(1, keepdim=True)).sign()


def singular_vectors(
    s_BNC: Tensor, t_BMC: Tensor, k: int, fix_signs: bool
) -> tuple[Tensor, Tensor]:
    """(student's, teacher's) k leading vectors (B, C, k), both times the teacher's weight.

    The weight of a vector is its singular value over the length of all k.
    """
    t_BCk, value_Bk = RightVectors.apply(t_BMC, k)
    t_BCk = with_fixed_signs(t_BCk) if fix_signs else t_BCk
    s_BCK, _ = RightVectors.apply(s_BNC, k + SPARE)
    share_B1k = F.normalize(value_Bk, dim=1)[:, None, :]
    return aligned(s_BCK, t_BCk) * share_B1k, t_BCk * share_B1k


def radial_basis(x_BCk: Tensor, y_BDk: Tensor) -> Tensor:
    """exp(-(x_ck - y_dk)^2 / 8), (B, C, D, k)."""
    return (-(x_BCk[:, :, None] - y_BDk[:, None, :]).square() / 8).exp()


def stage_differences(pairs: list[tuple[Tensor, Tensor]], k: int, fix_signs: bool) -> list[Tensor]:
    """For each two consecutive (student, teacher) maps: mean over images of the summed squares.

    Squares of the difference between both networks' radial basis functions.
    """
    stage_vectors = [singular_vectors(tokens(s), tokens(t), k, fix_signs) for s, t in pairs]
    values = []
    for (s_before, t_before), (s_after, t_after) in pairwise(stage_vectors):
        student_kernel, teacher_kernel = (
            radial_basis(s_after, s_before),
            radial_basis(t_after, t_before),
        )
        values.append((student_kernel - teacher_kernel).square().sum() / len(student_kernel))
    return values


class KDSVD(MapRelation):
    """Match relations between singular vectors of consecutive network stages.

    A map of N positions and C channels is a matrix (N, C) with right singular vectors v_1, ...,
    v_k. With the student's vector nearest to each (of the first k + 3, either sign) and both times
    the teacher's sigma_j / |sigma|, for consecutive stages a and b:

    L = sum over stages, mean_b sum_cdj (g^s_cdj - g^t_cdj)^2, g_cdj = exp(-(v^b_cj - v^a_dj)^2 / 8)

    (arXiv:1807.06819). Where channels differ, a head brings the student's to the
    teacher's. g depends on whether v^a and v^b point the same way, and an SVD leaves that open:
    the published code takes what it returns, which rounding and devices change. Here the teacher's
    vectors have a fixed sign. Every map of every image needs an SVD: slow for wide maps. Its
    gradient has poles where singular values coincide; here it stays finite. Memory is B C_a C_b k
    numbers.

    ```yaml
    losses:
      directions: {kind: kdsvd, maps: stages, k: 1, weight: 1.0}
    ```

    Args:
        maps: which maps are compared, from shallow to deep, two or more; see
            :class:`ssdistill.losses.base.maps.MapLoss`.
        k: singular vectors of each map.
        fix_signs: turn the teacher's vectors so that their largest entry is positive; false
            takes the sign that the SVD returns, as published.
        head: where channels differ: ``linear``, a 1x1 convolution, or ``mlp``, two of them with
            a ReLU between.

    Raises:
        UserError: a network without the requested maps, a single map, or one with fewer than k
            singular vectors.
    """

    kind = "kdsvd"
    paper = "Lee et al., ECCV 2018, arXiv:1807.06819"
    accumulates = True
    minimum_at_teacher = True

    def __init__(
        self,
        shapes: Shapes,
        *,
        maps: MapChoice | MapNames = "stages",
        k: PositiveInt = 1,
        fix_signs: bool = True,
        head: RelationHead = "linear",
    ):
        super().__init__(shapes, maps)
        self.k, self.fix_signs = k, fix_signs
        if len(self.map_pairs) < 2:
            raise self.fail("maps names one stage; set maps=stages or name at least two")
        heads = []
        for pair in self.map_pairs:
            student_width, *_ = pair.student_shape
            teacher_width, height, width = pair.teacher_shape
            count = min(teacher_width, height * width)
            if k > count:
                raise self.fail(
                    f"k={k} exceeds the {count} singular vectors of map '{pair.teacher}' of the "
                    f"teacher ({shapes.teacher_name}); lower k"
                )
            heads.append(
                nn.Identity()
                if student_width == teacher_width
                else map_regressor(student_width, teacher_width, head)
            )
        self.heads = nn.ModuleList(heads)

    def relation(self, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
        return torch.stack(stage_differences(pairs, self.k, self.fix_signs)).sum()
