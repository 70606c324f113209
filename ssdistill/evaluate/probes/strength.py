"""Choose the L2 strength of a linear probe on held-out training labels."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ssdistill.errors import UserError
from ssdistill.evaluate.probes.logistic import LogisticFit, fit_logistic, moments, score
from ssdistill.label_free.rows import Rows

ENOUGH = 2000
"""Held-out labels to choose by, where there are as many: with a hundred, chance would choose."""


@dataclass(frozen=True, eq=False)
class Choice:
    """The fit to all rows at the best strength.

    Attributes:
        held_out_loss: cross-entropy of held-out labels by strength, strong to weak (empty: no
            choice).
        held_out_top1: accuracy on them in percent, likewise.
        held_out: how many labels that is, all folds together.
    """

    fit: LogisticFit
    strength: float
    held_out_loss: dict[float, float]
    held_out_top1: dict[float, float]
    held_out: int


def stratified_split(target_N: Tensor, fraction: float, seed: int, fold: int = 0) -> Tensor:
    """True for the rows held out: ``fraction`` of every class, at least one where it has two.

    A class with a single row is never held out. Folds have the same size, and a row is in one of
    them only as long as ``fold`` is below ``1 / fraction`` and its class has enough rows.
    """
    shuffle_N = torch.randperm(len(target_N), generator=torch.Generator().manual_seed(seed))
    shuffled_N = target_N.cpu()[shuffle_N]
    order_N = torch.argsort(shuffled_N, stable=True)
    count_K = torch.bincount(shuffled_N)
    first_K = count_K.cumsum(0) - count_K
    quota_K = (fraction * count_K).round().long().clamp(min=1).minimum(count_K - 1)
    count_N, quota_N, first_N = (x.repeat_interleave(count_K) for x in (count_K, quota_K, first_K))
    rank_N = (torch.arange(len(order_N)) - first_N - fold * quota_N) % count_N
    held_N = torch.zeros(len(target_N), dtype=torch.bool)
    held_N[shuffle_N[order_N]] = rank_N < quota_N
    return held_N.to(target_N.device)


def rarest_label(target_NK: Tensor) -> Tensor:
    """Return the rarest label (N,) of each row, K if it has none, to stratify folds by.

    As in iterative stratification (Sechidis et al., ECML 2011, doi:10.1007/978-3-642-23808-6_10),
    rows are distributed by the label that is most likely to be missing in a fold.
    """
    count_K = target_NK.sum(0)
    count_NK = torch.where(target_NK, count_K, len(target_NK) + 1)
    none_N = ~target_NK.any(1)
    return torch.where(none_N, target_NK.shape[1], count_NK.argmin(1))


@dataclass(frozen=True)
class Folds:
    """Stratified parts of the training labels that are held out one after the other.

    Args:
        fraction: of every class's labels, held out by a fold.
        folds: how many; default, :meth:`enough`.
        seed: of the order the labels are dealt in.

    Raises:
        UserError: ``fraction`` is not between 0 and 1, or ``folds`` is above :attr:`most`.
    """

    fraction: float
    folds: int | None
    seed: int

    def __post_init__(self):
        if not 0 < self.fraction < 1:
            raise UserError(f"holdout must be between 0 and 1, got {self.fraction}")
        if self.folds is not None and not 1 <= self.folds <= self.most:
            raise UserError(
                f"folds={self.folds}: must be between 1 and {self.most} "
                f"with holdout={self.fraction:g}; lower one of them"
            )

    @property
    def most(self) -> int:
        """Folds that have no label in common."""
        return int(1 / self.fraction + 1e-9)

    def enough(self, labels: int) -> int:
        """Folds that hold out enough labels together, or as many as there are."""
        return self.folds or min(self.most, math.ceil(ENOUGH / (self.fraction * labels)))

    def of(self, target_N: Tensor) -> Iterator[tuple[Tensor, int]]:
        """Yield row numbers with the held-out rows last, and the number of the other rows."""
        for fold in range(self.enough(len(target_N))):
            held_N = stratified_split(target_N, self.fraction, self.seed, fold)
            if not held_N.any():
                raise UserError(
                    "every class has one training label only: the L2 strength cannot be chosen; "
                    "add labels, or set a single strength"
                )
            yield torch.argsort(held_N.byte(), stable=True), int((~held_N).sum())


def best_fit(
    rows_of: Callable[[Tensor], Rows],
    target_N: Tensor,
    num_classes: int,
    strengths: Sequence[float],
    split: Folds,
) -> Choice:
    """Choose by the folds' mean cross-entropy; then fit all rows.

    With several labels per row, (N, K) bool, all classes share a strength, and folds are stratified
    by :func:`rarest_label`.

    Accuracy would choose by the few labels that two strengths answer differently: other folds,
    another strength. In cross-entropy every label has its say.

    Args:
        rows_of: standardized rows in the order of an index (1, N).

    Raises:
        UserError: nothing can be held out.
    """
    strength_P = torch.tensor(sorted(set(strengths), reverse=True), dtype=torch.float64)
    # An entry of the gradient, which every class has, is the smaller the more classes there are.
    tolerance = min(1e-4, 1e-3 / num_classes)
    strata_N = target_N if target_N.ndim == 1 else rarest_label(target_N)
    rows = rows_of(torch.arange(len(target_N), device=target_N.device)[None])
    fit = partial(fit_logistic, num_classes=num_classes, moments_GEE=moments(rows))
    best, start_1KE, held_out = 0, None, 0
    loss_by, top1_by = {}, {}
    if len(strength_P) > 1:
        folds = split.enough(len(target_N))
        top1_P, loss_P = torch.zeros(2, len(strength_P), dtype=torch.float64)
        for order_N, fitted in split.of(strata_N):
            part, label_N = rows_of(order_N[None]), target_N[order_N]
            # From zero: where nearly any solution will do, the last fold's would have stayed,
            # which has seen the labels that are held out now.
            theta_PKE = fit(
                part.part(0, fitted),
                label_N[None, :fitted],
                strength_P=strength_P,
                tolerance=tolerance,
            ).theta_PKE
            hit_P, lost_P = score(part.part(fitted, len(part)), label_N[fitted:], theta_PKE)
            top1_P += hit_P.cpu() / folds
            loss_P += lost_P.cpu() / folds
            held_out += len(part) - fitted
        best = int(loss_P.argmin())
        start_1KE = theta_PKE[best : best + 1]
        loss_by, top1_by = (
            dict(zip(strength_P.tolist(), mean_P.tolist(), strict=True))
            for mean_P in (loss_P, top1_P)
        )
    final_fit = fit(
        rows,
        target_N[None],
        strength_P=strength_P[best : best + 1],
        start_PKE=start_1KE,
        tolerance=tolerance / 10,
    )
    return Choice(final_fit, strength_P[best].item(), loss_by, top1_by, held_out)
