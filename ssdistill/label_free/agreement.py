"""Agreement between two encoders on the same images, without labels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ssdistill.errors import UserError
from ssdistill.label_free.features import as_features
from ssdistill.label_free.nearest import nearest_others

RIDGE = 1e-4
"""Ridge of the linear map, in units of the mean variance of what it maps from."""
ANCHORS = 500
"""Maximum number of images whose similarities to all others are ranked."""
CKA_AT_LEAST = 4
"""Minimum number of images for a debiased CKA."""
CHUNK = 2**21
"""Similarities in a chunk of rankings."""


@torch.no_grad()
def agreement(a_ND: Any, b_ND: Any, *, k: int = 10, max_queries: int = 2000) -> dict[str, float]:
    """Measure how well ``a`` (a student or compressed encoder) agrees with its reference ``b``.

    Args:
        a_ND, b_ND: embeddings of the same images in the same order; widths may differ.
        k: neighbors compared by ``agree/knn_overlap``.
        max_queries: images whose neighbors are compared, evenly spaced; all are candidates.

    Returns:
        ``agree/cka``: debiased linear CKA, 1 = equal up to rotation, scale and shift, about 0 =
        unrelated. ``agree/mapped_cosine``: mean centered cosine after the best linear map from a
        to b, on images the map was not fitted to. ``agree/cosine`` and ``agree/cosine_p01``:
        mean and 1 % quantile of the centered cosine, without a map where the widths are equal
        and through the map where they are not. ``agree/knn_overlap``: mean fraction of common
        neighbors. ``agree/rank_correlation``: see :func:`rank_correlation`.

    Raises:
        UserError: different numbers of images, too few of them, or values that are not finite.
    """
    a_ND, b_ND = as_features(a_ND, "features"), as_features(b_ND, "reference features")
    b_ND = b_ND.to(a_ND.device)
    if len(a_ND) != len(b_ND):
        raise UserError(
            f"agreement requires the same images for both encoders, got {len(a_ND)} and "
            f"{len(b_ND)} embeddings"
        )
    if len(a_ND) < CKA_AT_LEAST or not 1 <= k < len(a_ND):
        raise UserError(
            f"agreement requires at least 4 images and more than k={k}, got {len(a_ND)}; add images"
        )
    cka = LinearCKA()
    cka.update(a_ND, b_ND)
    mapped_N = mapped_cosine(a_ND, b_ND)
    cosine_N = centered_cosine(a_ND, b_ND) if a_ND.shape == b_ND.shape else mapped_N
    return {
        "agree/cka": cka.compute(),
        "agree/cosine": cosine_N.mean().item(),
        "agree/cosine_p01": torch.quantile(cosine_N[:: 1 + len(cosine_N) // 2**24], 0.01).item(),
        "agree/mapped_cosine": mapped_N.mean().item(),
        "agree/knn_overlap": knn_overlap(a_ND, b_ND, k, max_queries),
        "agree/rank_correlation": rank_correlation(a_ND, b_ND),
    }


def side_by_side(features: Sequence[Any]) -> Tensor:
    """Concatenate features (N, D) of several encoders with equal weight for each."""
    if len(features) == 1:
        return torch.as_tensor(features[0])
    centered = [z_ND - z_ND.mean(0) for z_ND in map(torch.as_tensor, features)]
    # An encoder that maps all images to one point has no spread to be scaled.
    norms = [torch.linalg.norm(z_ND) for z_ND in centered]
    pairs = zip(centered, norms, strict=True)
    return torch.cat([z_ND / norm if norm > 0 else z_ND for z_ND, norm in pairs], 1)


class LinearCKA:
    """Linear CKA of two sets of features, batch by batch, debiased for small samples.

    CKA = HSIC(a, b) / sqrt(HSIC(a, a) HSIC(b, b)) (Kornblith et al., arXiv:1905.00414, eq. 3)
    with the unbiased HSIC of Song et al. (JMLR 13, 2012, eq. 5), written with sums over images,
    so that memory is (Da + Db)^2 whatever their number and the order of batches is immaterial.
    """

    def __init__(self) -> None:
        self.count = 0
        self.shifts: list[Tensor] = []

    @torch.no_grad()
    def update(self, a_BD: Tensor, b_BD: Tensor) -> None:
        """Add the two embeddings of one batch of images."""
        pair = [a_BD.double(), b_BD.double()]
        if not self.count:
            # A common shift changes nothing but keeps a large mean from eating the digits.
            self.shifts = [z.mean(0) for z in pair]
            self.total_E = torch.zeros(
                sum(z.shape[1] for z in pair), dtype=torch.float64, device=a_BD.device
            )
            self.gram_EE = self.total_E.new_zeros(len(self.total_E), len(self.total_E))
            self.norm_sum_2 = self.total_E.new_zeros(2)
            self.norm_gram_22 = self.total_E.new_zeros(2, 2)
            self.norm_moment_2E = self.total_E.new_zeros(2, len(self.total_E))
        pair = [z - shift for z, shift in zip(pair, self.shifts, strict=True)]
        joint_BE = torch.cat(pair, 1)
        norm_B2 = torch.stack([z.square().sum(1) for z in pair], 1)
        self.count += len(joint_BE)
        self.total_E += joint_BE.sum(0)
        self.gram_EE += joint_BE.T @ joint_BE
        self.norm_sum_2 += norm_B2.sum(0)
        self.norm_gram_22 += norm_B2.T @ norm_B2
        self.norm_moment_2E += norm_B2.T @ joint_BE

    def compute(self) -> float:
        """Return the CKA of all batches so far; at most 1, slightly negative by chance near 0.

        Raises:
            UserError: fewer than four images.
        """
        if self.count < CKA_AT_LEAST:
            raise UserError(f"CKA requires at least 4 images, got {self.count}")
        ab, aa, bb = self._hsic(0, 1), self._hsic(0, 0), self._hsic(1, 1)
        if aa <= 0 or bb <= 0:
            return 0.0
        return ab / (aa * bb) ** 0.5

    def _hsic(self, i: int, j: int) -> float:
        """n (n - 3) times the unbiased HSIC of sets i and j, from the sums.

        With centered rows x_n, y_n it is |X^T Y|^2 - n/(n-2) sum |x_n|^2 |y_n|^2
        + sum |x_n|^2 sum |y_n|^2 / ((n-1)(n-2)).
        """
        n, mean_E = self.count, self.total_E / self.count
        width = len(self.shifts[0])
        part = (slice(0, width), slice(width, None))
        mean_i, mean_j = mean_E[part[i]], mean_E[part[j]]
        cross_ij = self.gram_EE[part[i], part[j]]
        square_i, square_j = mean_i.square().sum(), mean_j.square().sum()
        dot = (cross_ij - n * torch.outer(mean_i, mean_j)).square().sum()
        norm_i = self.norm_sum_2[i] - n * square_i
        norm_j = self.norm_sum_2[j] - n * square_j
        # sum over n of (p_n - 2 m.x_n + |m|^2)(q_n - 2 k.y_n + |k|^2), multiplied out.
        norms = (
            self.norm_gram_22[i, j]
            - 2 * self.norm_moment_2E[i, part[j]] @ mean_j
            - 2 * self.norm_moment_2E[j, part[i]] @ mean_i
            + self.norm_sum_2[i] * square_j
            + self.norm_sum_2[j] * square_i
            + 4 * mean_i @ cross_ij @ mean_j
            - 3 * n * square_i * square_j
        )
        return (dot - n / (n - 2) * norms + norm_i * norm_j / ((n - 1) * (n - 2))).item()


def centered_cosine(a_ND: Tensor, b_ND: Tensor) -> Tensor:
    """Cosine of every pair of rows after subtracting each set's mean, (N,)."""
    return functional.cosine_similarity(a_ND - a_ND.mean(0), b_ND - b_ND.mean(0), dim=1)


def mapped_cosine(a_ND: Tensor, b_NE: Tensor) -> Tensor:
    """Centered cosine after the best linear map a -> b, on the half that was held out.

    The map is ridge regression on the even rows; means are those of the even rows too.
    """
    a_ND, b_NE = a_ND.double(), b_NE.double()
    a_ND, b_NE = a_ND - a_ND[::2].mean(0), b_NE - b_NE[::2].mean(0)
    gram_DD = a_ND[::2].T @ a_ND[::2]
    ridge = RIDGE * gram_DD.diagonal().mean().clamp(min=torch.finfo(torch.float64).tiny)
    gram_DD.diagonal().add_(ridge)
    map_DE = torch.linalg.solve(gram_DD, a_ND[::2].T @ b_NE[::2])
    return functional.cosine_similarity(a_ND[1::2] @ map_DE, b_NE[1::2], dim=1)


def knn_overlap(a_ND: Tensor, b_ND: Tensor, k: int = 10, max_queries: int = 2000) -> float:
    """Mean fraction of an image's k nearest neighbors (by cosine) that both encoders share."""
    rows_Q = torch.arange(0, len(a_ND), -(-len(a_ND) // max_queries), device=a_ND.device)
    in_a_Qk, in_b_Qk = (nearest_others(z_ND, k, rows_Q) for z_ND in (a_ND, b_ND))
    return (in_a_Qk[:, :, None] == in_b_Qk[:, None, :]).any(2).double().mean().item()


def rank_correlation(a_ND: Any, b_ND: Any, max_anchors: int = ANCHORS) -> float:
    """Rank correlation of both encoders' similarities of an image to all others.

    Mean over anchor images of Spearman's correlation between an anchor's cosine similarities to
    all other images under ``a`` and those under ``b``; equal ones share their mean rank. It is
    representational similarity analysis (Kriegeskorte et al., Front. Syst. Neurosci. 2:4, 2008),
    which compares ranks because two spaces need not be related linearly, row by row of the
    similarity matrix instead of over all pairs at once: what counts is the order in which an
    image retrieves others, not whether one image has more similar ones than another; and sorting
    stays short. Unlike k-NN overlap it looks at far images as much as at near ones.

    Args:
        a_ND, b_ND: embeddings of the same images, at least three; widths may differ.
        max_anchors: anchors at most, evenly spaced.

    Returns:
        1 = the same order, 0 = unrelated, -1 = reversed. An anchor to which one encoder finds
        all images equally similar counts as 0.
    """
    unit = [functional.normalize(torch.as_tensor(z).float(), dim=1) for z in (a_ND, b_ND)]
    count = len(unit[0])
    anchor_Q = torch.arange(0, count, -(-count // max_anchors))
    total = 0.0
    for rows_B in anchor_Q.split(max(1, CHUNK // count)):
        a_BN, b_BN = (_centered_ranks(z_ND, rows_B) for z_ND in unit)
        scale_B = np.sqrt((a_BN**2).sum(1) * (b_BN**2).sum(1))
        shared_B = (a_BN * b_BN).sum(1)
        total += np.divide(shared_B, scale_B, where=scale_B > 0, out=np.zeros(len(rows_B))).sum()
    return float(total / len(anchor_Q))


def _centered_ranks(unit_ND: Tensor, rows_B: Tensor) -> np.ndarray:
    """Ranks (B, N) of all images by similarity to each anchor, minus their mean; 0 for itself."""
    from scipy.stats import rankdata

    # In numpy, which sorts floats several times faster on a CPU.
    similarity_BN = (unit_ND[rows_B] @ unit_ND.T).cpu().numpy()
    own_B = np.arange(len(rows_B)), rows_B.numpy()
    similarity_BN[own_B] = -np.inf
    # Itself has rank 1; the others' ranks, 2 to N, have the mean 1 + N / 2.
    centered_BN = rankdata(similarity_BN, axis=1) - (1 + similarity_BN.shape[1] / 2)
    centered_BN[own_B] = 0
    return centered_BN
