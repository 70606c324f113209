"""Collapse metrics of a batch of embeddings, without labels."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from ssdistill.errors import UserError

CHUNK = 2**22
"""Maximum number of pairs in memory."""
ROUNDING = 1e-5
"""Fraction of the embeddings' length below which their spread is float32 rounding."""
ALPHA_RANKS = (4, 100)
"""Ranks of the eigenvalues to which the power law is fitted (1 is the largest)."""


@torch.no_grad()
def collapse_metrics(z_BD: Tensor, z2_BD: Tensor | None = None) -> dict[str, float]:
    """Compute all metrics of one batch, under their names in the record.

    Args:
        z_BD: embeddings, B >= 2.
        z2_BD: embeddings of a second view of the same images; without it there is no alignment.

    Returns:
        ``collapse/std``, ``collapse/effective_rank``, ``collapse/uniformity`` and, with a second
        view, ``collapse/alignment``.

    Raises:
        UserError: fewer than two embeddings, or views of different shapes.
    """
    metrics = {
        "collapse/std": relative_std(z_BD),
        "collapse/effective_rank": effective_rank(z_BD),
        "collapse/uniformity": uniformity(z_BD),
    }
    if z2_BD is not None:
        metrics["collapse/alignment"] = alignment(z_BD, z2_BD)
    return metrics


@torch.no_grad()
def is_collapsed(z_BD: Tensor, min_std: float = 0.01, min_rank: float = 1.1) -> bool:
    """Whether the embeddings are (nearly) one point, (nearly) one line, or not finite.

    One point: `relative_std` under ``min_std``. One line: effective rank of the centered
    embeddings under ``min_rank``, tested only if two dimensions are possible. The mean is
    subtracted for the line because rectified features always share a large one.

    Raises:
        UserError: fewer than two embeddings.
    """
    z_BD = _checked(z_BD)
    if not torch.isfinite(z_BD).all():
        return True
    if relative_std(z_BD) < min_std:
        return True
    if min(len(z_BD) - 1, z_BD.shape[1]) < 2:
        return False
    gram = _gram(z_BD - z_BD.mean(0))
    # Rarely are eigenvalues needed to say no. "not >=" so that NaN is looked into.
    return not _participation(gram) >= min_rank and _entropy_rank(gram) < min_rank


def relative_std(z_BD: Tensor) -> float:
    """sqrt(D) times the mean over dimensions of the std of z / |z| over the batch.

    1 for directions spread evenly over the sphere, 0 for a single direction (Chen and He,
    arXiv:2011.10566, section 4.1, watch the same std against 1 / sqrt(D)).
    """
    unit_BD = functional.normalize(_checked(z_BD), dim=1)
    return unit_BD.std(0, correction=0).mean().item() * math.sqrt(z_BD.shape[1])


def effective_rank(z_BD: Tensor) -> float:
    """RankMe: exp of the entropy of the singular values scaled to sum 1 (arXiv:2210.02885, eq. 1).

    It is the effective rank of Roy and Vetterli (EUSIPCO 2007) of the matrix of embeddings, which
    is not centered; RankMe's authors add 1e-7 to the scaled values. The metric
    ``collapse/effective_rank`` and the criterion ``rankme`` of ``select`` and ``stop_early`` are
    both this function and differ in the images alone: a criterion takes up to 2000 training images.

    Returns:
        a number between 1 and min(B, D); 0 when all embeddings are zero, NaN when one is not
        finite.
    """
    z_BD = _checked(z_BD)
    if not torch.isfinite(z_BD).all():
        return math.nan
    return _entropy_rank(_gram(z_BD))


def entropy_rank(weight_K: Tensor) -> float:
    """exp of the entropy of non-negative numbers scaled to sum 1: their effective number.

    Between 1 and K, 0 when all are zero (Roy and Vetterli, EUSIPCO 2007, definition 1).
    """
    if weight_K.sum() == 0:
        return 0.0
    return torch.special.entr(weight_K / weight_K.sum()).sum().exp().item()


@torch.no_grad()
def alpha(z_BD: Tensor) -> float:
    """α-ReQ: decay exponent of the covariance's eigenvalues, i^-alpha (arXiv:2202.05808).

    Near 1 in good encoders; larger where few directions carry nearly everything, near 0 where
    all carry alike. Weighted least squares of log(eigenvalue i) on log(i), weights 1 / i, over the
    ranks of ``ALPHA_RANKS``: the paper names neither ranks nor weights, these are those of its
    code. Eigenvalues that are rounding (``ROUNDING``) are ignored.

    Returns:
        the exponent; NaN where fewer than ten eigenvalues can be told from rounding, or an
        embedding is not finite.
    """
    z_BD = _checked(z_BD)
    if not torch.isfinite(z_BD).all():
        return math.nan
    centered_BD = z_BD - z_BD.mean(0)
    value_K = torch.linalg.eigvalsh(_gram(centered_BD)).flip(0)
    value_K = value_K[value_K > ROUNDING**2 * z_BD.square().sum()]
    if len(value_K) < 10:
        return math.nan
    first, last = ALPHA_RANKS
    y = value_K[first - 1 : last].log()
    rank = torch.arange(first, first + len(y), dtype=y.dtype, device=y.device)
    x, weight = rank.log(), 1 / rank
    x, y = (v - (weight * v).sum() / weight.sum() for v in (x, y))
    return -((weight * x * y).sum() / (weight * x * x).sum()).item()


def _gram(z_BD: Tensor) -> Tensor:
    """Return the smaller of z z^T and z^T z; their eigenvalues are z's squared singular values."""
    return z_BD @ z_BD.T if z_BD.shape[1] > len(z_BD) else z_BD.T @ z_BD


def _entropy_rank(gram: Tensor) -> float:
    return entropy_rank(torch.linalg.eigvalsh(gram).clamp(min=0).sqrt())


def _participation(gram: Tensor) -> float:
    """(sum of eigenvalues)^2 / sum of their squares, without computing them; NaN if all are zero.

    It is exp of the Rényi entropy of order 2 of the squared singular values over their sum, so
    never above the effective rank: that entropy falls with the order, and squaring sharpens.
    """
    return (gram.trace().square() / gram.square().sum()).item()


def alignment(z_BD: Tensor, z2_BD: Tensor) -> float:
    """Mean squared distance of two views' embeddings on the sphere (arXiv:2005.10242, eq. 5).

    0 for equal directions, 2 for unrelated ones, 4 for opposite ones (alpha = 2).
    """
    z_BD, z2_BD = _checked(z_BD), _checked(z2_BD)
    if z_BD.shape != z2_BD.shape:
        raise UserError(
            f"embeddings of two views differ in shape: {tuple(z_BD.shape)} and {tuple(z2_BD.shape)}"
        )
    gap_BD = functional.normalize(z_BD, dim=1) - functional.normalize(z2_BD, dim=1)
    return gap_BD.square().sum(1).mean().item()


def uniformity(z_BD: Tensor) -> float:
    """log of the mean over pairs of exp(-2 |z_i - z_j|^2) on the sphere (arXiv:2005.10242, eq. 6).

    0 for a single point, about -4 + 8/D for directions spread evenly in many dimensions (t = 2).
    Costs B^2 D; memory is bounded.
    """
    unit_BD = functional.normalize(_checked(z_BD), dim=1)
    total = unit_BD.new_zeros(())
    for part_bD in unit_BD.split(max(1, CHUNK // len(unit_BD))):
        total += (4 * (part_bD @ unit_BD.T) - 4).exp().sum()
    own = (4 * unit_BD.square().sum(1) - 4).exp().sum()
    pairs = len(unit_BD) * (len(unit_BD) - 1)
    return ((total - own) / pairs).log().item()


def _checked(z_BD: Tensor) -> Tensor:
    # float64: an entropy of many small singular values is a sum of what float32 rounds away.
    z_BD = torch.as_tensor(z_BD).detach().double()
    if z_BD.ndim != 2 or len(z_BD) < 2 or z_BD.shape[1] < 1:
        raise UserError(
            "label-free metrics require embeddings (B, D) of two images or more, got "
            f"{tuple(z_BD.shape)}"
        )
    return z_BD
