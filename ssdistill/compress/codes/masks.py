"""Unstructured pruning masks: weight saliency and selection."""

from typing import Literal

import torch
from torch import Tensor, nn

Criterion = Literal["magnitude", "l1", "l2", "lamp"]


def score(weight: Tensor, criterion: Criterion) -> Tensor:
    """Saliency of every element of a layer's weight, float64 of the same shape.

    ``magnitude`` is |w|; ``l1`` and ``l2`` divide it by the mean |w| and the root mean square of
    the layer; ``lamp`` is w^2 over the sum of all squares that are no smaller (Lee et al.,
    ICLR 2021, arXiv:2010.07611, eq. 4).
    """
    size = weight.detach().abs().double()
    if criterion == "l1":
        return size / size.mean().clamp(min=1e-300)
    if criterion == "l2":
        return size / size.square().mean().sqrt().clamp(min=1e-300)
    if criterion == "lamp":
        squares_N, order_N = size.flatten().square().sort()
        rest_N = squares_N.flip(0).cumsum(0).flip(0).clamp(min=1e-300)
        return squares_N.scatter(0, order_N, squares_N / rest_N).view(size.shape)
    return size


def top(score: Tensor, sparsity: float) -> Tensor:
    """True for all but the ``sparsity`` fraction of the smallest; of equals the first ones go."""
    zero_count = round(sparsity * score.numel())
    keep = torch.ones(score.numel(), dtype=torch.bool, device=score.device)
    keep[score.flatten().argsort(stable=True)[:zero_count]] = False
    return keep.view(score.shape)


def mask_of_pattern(weight: Tensor, n: int, m: int) -> Tensor:
    """True for the largest ``n`` in every group of ``m`` along the input channels.

    Where the channels are no multiple of ``m``, the last group is smaller, and keeps up to ``n``.
    """
    size_OKI = weight.abs().flatten(2).transpose(1, 2) if weight.ndim > 2 else weight.abs()
    inputs = size_OKI.shape[-1]
    padded = nn.functional.pad(size_OKI, (0, -inputs % m), value=-1.0)
    groups = padded.unflatten(-1, (-1, m))
    best = groups.argsort(dim=-1, descending=True, stable=True)[..., :n]
    keep = torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, best, True)
    keep = keep.flatten(-2)[..., :inputs]
    return keep.transpose(1, 2).reshape(weight.shape) if weight.ndim > 2 else keep
