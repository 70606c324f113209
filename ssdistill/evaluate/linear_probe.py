"""Protocol ``linear``: multinomial logistic regression on frozen, standardised features.

The strength of the L2 penalty is chosen on a part of the training labels, the regression is
then fitted to all of them, and the test set is looked at once.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ssdistill.errors import UserError
from ssdistill.evaluate.features import as_probe_data, binomial_error
from ssdistill.evaluate.logistic import fit_logistic, standardisation, with_ones

STRENGTHS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
"""L2 strengths tried by default, strong to weak."""


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """What a linear probe found. Accuracies in percent.

    Attributes:
        top1, top5: test accuracy (top5 is 100 with five classes or fewer).
        standard_error: binomial standard error of ``top1``.
        strength: the chosen L2 strength; scikit-learn's ``C`` is ``1 / (n_train * strength)``.
        held_out_top1: accuracy on the held-out training labels by strength (empty: no choice).
        weight_KD, bias_K: the classifier for raw, not standardised, features.
        classes: label of every row of the weight.
        predictions: predicted label of every test image.
        gradient: largest entry of the objective's gradient where the fit stopped.
        seconds: wall time, features given.
    """

    protocol: ClassVar[str] = "linear"
    top1: float
    top5: float
    standard_error: float
    n_train: int
    n_test: int
    strength: float
    held_out_top1: dict[float, float]
    weight_KD: Tensor = field(repr=False)
    bias_K: Tensor = field(repr=False)
    classes: np.ndarray = field(repr=False)
    predictions: np.ndarray = field(repr=False)
    gradient: float
    seconds: float

    def metrics(self) -> dict[str, float]:
        """Under the names of the record."""
        return {"probe/linear/top1": self.top1, "probe/linear/top5": self.top5}


def linear_probe(
    train_ND: Any,
    train_labels: Any,
    test_ND: Any,
    test_labels: Any,
    *,
    strengths: Sequence[float] = STRENGTHS,
    holdout: float = 0.1,
    seed: int = 0,
) -> LinearProbe:
    """Fit on the training features, choose on a part of them, report on the test features.

    Features are standardised with the mean and standard deviation of the training features. The
    best held-out accuracy wins; equal accuracies are told apart by held-out cross-entropy.

    Args:
        train_ND, test_ND: features, numpy or torch; the work is done where ``train_ND`` is.
        train_labels, test_labels: integers, one per row.
        strengths: L2 strengths to choose from; one strength is used as it is.
        holdout: share of every class's training labels the choice is made on.
        seed: of the stratified split.

    Raises:
        UserError: missing labels, one class only, test classes unseen in training, NaN or
            infinite features, or classes too small to hold anything out.
    """
    began = time.perf_counter()
    if not strengths or min(strengths) <= 0:
        raise UserError(f"strengths must be positive, got {tuple(strengths)}")
    if not 0 < holdout < 1:
        raise UserError(f"holdout must be between 0 and 1, got {holdout}")
    train_ND, target_N, test_ND, test_target_N, classes_K = as_probe_data(
        train_ND, train_labels, test_ND, test_labels
    )
    mean_D, scale_D = standardisation(train_ND)
    x_EN = with_ones((train_ND - mean_D) / scale_D)
    strength_P = torch.tensor(sorted(strengths, reverse=True), dtype=torch.float64)
    best, held_out_top1, start = 0, {}, None
    if len(strengths) > 1:
        held_N = stratified_split(target_N, holdout, seed)
        best, held_out_top1, start = _choose(x_EN, target_N, len(classes_K), strength_P, held_N)
    fit = fit_logistic(
        x_EN[None], target_N[None], len(classes_K), strength_P[best : best + 1], start, 1e-5
    )
    weight_KD, bias_K = fit.raw(mean_D, scale_D)
    logits_NK = test_ND @ weight_KD[0].T + bias_K[0]
    ranked_NT = logits_NK.topk(min(5, len(classes_K)), dim=1).indices
    hit_NT = ranked_NT == test_target_N[:, None]
    top1 = 100 * hit_NT[:, 0].double().mean().item()
    return LinearProbe(
        top1=top1,
        top5=100 * hit_NT.any(1).double().mean().item(),
        standard_error=binomial_error(top1, len(test_ND)),
        n_train=len(train_ND),
        n_test=len(test_ND),
        strength=strength_P[best].item(),
        held_out_top1=held_out_top1,
        weight_KD=weight_KD[0].cpu(),
        bias_K=bias_K[0].cpu(),
        classes=classes_K.cpu().numpy(),
        predictions=classes_K[ranked_NT[:, 0]].cpu().numpy(),
        gradient=fit.gradient_P[0].item(),
        seconds=time.perf_counter() - began,
    )


def stratified_split(target_N: Tensor, share: float, seed: int) -> Tensor:
    """True for the rows held out: ``share`` of every class, at least one where it has two.

    A class with a single row is never held out.
    """
    shuffle_N = torch.randperm(len(target_N), generator=torch.Generator().manual_seed(seed))
    shuffled_N = target_N.cpu()[shuffle_N]
    order_N = torch.argsort(shuffled_N, stable=True)
    count_K = torch.bincount(shuffled_N)
    first_K = count_K.cumsum(0) - count_K
    rank_N = torch.arange(len(order_N)) - first_K.repeat_interleave(count_K)
    quota_K = (share * count_K).round().long().clamp(min=1).minimum(count_K - 1)
    held_N = torch.zeros(len(target_N), dtype=torch.bool)
    held_N[shuffle_N[order_N]] = rank_N < quota_K.repeat_interleave(count_K)
    return held_N.to(target_N.device)


def _choose(
    x_EN: Tensor, target_N: Tensor, num_classes: int, strength_P: Tensor, held_N: Tensor
) -> tuple[int, dict[float, float], Tensor]:
    """Index of the best strength, held-out accuracies, and its solution to start from."""
    if not held_N.any():
        raise UserError(
            "every class has one training label only: the L2 strength cannot be chosen; "
            "give more labels or a single strength"
        )
    fit = fit_logistic(x_EN[None, :, ~held_N], target_N[None, ~held_N], num_classes, strength_P)
    logits_PKN = fit.theta_PKE.to(x_EN.dtype) @ x_EN[:, held_N]
    held_target_PN = target_N[held_N].expand(len(strength_P), -1)
    top1_P = 100 * (logits_PKN.argmax(1) == held_target_PN).double().mean(1)
    loss_P = functional.cross_entropy(logits_PKN, held_target_PN, reduction="none").mean(1)
    best = min(range(len(strength_P)), key=lambda p: (-top1_P[p].item(), loss_P[p].item()))
    by_strength = dict(zip(strength_P.tolist(), top1_P.tolist(), strict=True))
    return best, by_strength, fit.theta_PKE[best : best + 1]
