"""The softmax that contrastive losses share: a positive among the keys of a queue."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ssdistill.distributed import gather_with_gradient, rank

LOGITS_AT_ONCE = 2**26
"""Maximum number of similarities in memory (256 MiB)."""


class _LogMass(torch.autograd.Function):
    """Log-sum-exp over keys; the forward pass computes the gradient, a weighted mean of keys.

    No (N, K) similarities are saved for the backward pass: pixels against 65536 keys would
    take gigabytes. The work is that of the usual two products.
    """

    @staticmethod
    def forward(ctx: Any, s_ND: Tensor, queue_KD: Tensor, temperature: float) -> Tensor:
        masses, slopes = [], []
        for s_BD in s_ND.split(max(1, LOGITS_AT_ONCE // len(queue_KD))):
            logits_BK = (s_BD @ queue_KD.T).div_(temperature)
            mass_B = logits_BK.logsumexp(1)
            masses.append(mass_B)
            if ctx.needs_input_grad[0]:
                weight_BK = logits_BK.sub_(mass_B[:, None]).exp_()
                slopes.append((weight_BK @ queue_KD).div_(temperature))
        if slopes:
            ctx.save_for_backward(torch.cat(slopes))
        return torch.cat(masses)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor, None, None]:
        (slope_ND,) = ctx.saved_tensors
        return grad_N[:, None] * slope_ND, None, None


def log_mass(s_ND: Tensor, queue_KD: Tensor, temperature: float) -> Tensor:
    """log sum_k exp(s·q_k / T) of each row of ``s_ND``, differentiable in ``s_ND`` only."""
    return _LogMass.apply(s_ND, queue_KD, temperature)


def info_nce_each(
    s_BD: Tensor, positives: Sequence[Tensor], queue_KD: Tensor, temperature: float
) -> list[Tensor]:
    """Compute :func:`info_nce` for each of several positives (B, D) with shared negatives.

    A positive is no negative of another one (BINGO, arXiv:2107.01691).
    """
    with torch.autocast(s_BD.device.type, enabled=False):
        s_BD = F.normalize(s_BD.float(), dim=1)
        negatives_B = log_mass(s_BD, queue_KD, temperature)
        losses = []
        for t_BD in positives:
            positive_B = (s_BD * F.normalize(t_BD.float(), dim=1)).sum(1) / temperature
            losses.append(F.softplus(negatives_B - positive_B).mean())
        return losses


def info_nce(s_BD: Tensor, t_BD: Tensor, queue_KD: Tensor, temperature: float) -> Tensor:
    """mean_b -log softmax([n(s)·n(t), n(s)·Q] / T)_0, n(x) = x / |x|, in float32.

    ``t_BD`` holds the positives; the rows of ``queue_KD``, the negatives, have length 1.
    """
    return info_nce_each(s_BD, [t_BD], queue_KD, temperature)[0]


def batch_contrast(x_BP: Tensor, y_BP: Tensor, temperature: float) -> Tensor:
    """mean_b -log softmax_k(n(x_b)·n(y_k) / T)_b, n(x) = x / |x|, in float32.

    k runs over the rows of all processes; gradients flow back through both arguments.
    """
    with torch.autocast(x_BP.device.type, enabled=False):
        logits_BG = (
            F.normalize(x_BP.float(), dim=1)
            @ gather_with_gradient(F.normalize(y_BP.float(), dim=1)).T
            / temperature
        )
        own_B = torch.arange(len(x_BP), device=x_BP.device) + rank() * len(x_BP)
        return F.cross_entropy(logits_BG, own_B)
