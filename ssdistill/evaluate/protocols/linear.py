"""Protocol ``linear``: the best regularized logistic regression on frozen features."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ssdistill.errors import UserError
from ssdistill.evaluate.intervals import binomial_error
from ssdistill.evaluate.probes.logistic import chunk_logits
from ssdistill.evaluate.probes.several_linear import linear_probe_of_several
from ssdistill.evaluate.probes.strength import Folds, best_fit
from ssdistill.evaluate.protocols import (
    Measurements,
    Protocol,
    classified,
    label_metrics,
    left_out,
)
from ssdistill.evaluate.subject import Subject
from ssdistill.evaluate.targets import as_probe_data
from ssdistill.label_free.rows import Rows, standardization
from ssdistill.settings import NonNegativeInt, OpenFraction, Positive, PositiveInt

log = logging.getLogger(__name__)

STRENGTHS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
"""L2 strengths tried by default, strong to weak: a hundred labels want the first, tens of thousands
the last."""


class Linear(Protocol):
    """Multinomial logistic regression on standardized frozen features.

    The L2 strength of the least cross-entropy on held-out training labels is chosen, the
    regression fitted again to all of them, and the test images are looked at once.

    If images may have several labels, each class has a logistic regression of its own, all with the
    same strength, and ``map`` is the main metric, as in the linear evaluation on PASCAL VOC 2007
    (Goyal et al., arXiv:1905.01235, section 6.1, with linear SVMs).

    Args:
        strengths: L2 strengths to choose from.
        holdout: fraction of every class's training labels that a fold holds out.
        folds: how many such parts the choice is made on; by default as many as hold out 2,000
            labels together, which is one where there are 20,000.
        seed: of the folds.
    """

    kind = "linear"
    paper = "DINOv3's log_regression, arXiv:2508.10104 (strength chosen on a part of the training)"
    by_default = True
    several = True

    def __init__(
        self,
        *,
        strengths: Annotated[tuple[Positive, ...], Field(min_length=1)] = STRENGTHS,
        holdout: OpenFraction = 0.1,
        folds: PositiveInt | None = None,
        seed: NonNegativeInt = 0,
    ):
        Folds(holdout, folds, seed)  # checks the settings before anything is trained
        self.strengths: Sequence[float] = strengths
        self.holdout, self.folds, self.seed = holdout, folds, seed

    def evaluate(self, subject: Subject) -> Measurements:
        if subject.labels("train").ndim == 2:
            return self._several(subject)
        probe = linear_probe(
            *subject.probe_data(),
            strengths=self.strengths,
            holdout=self.holdout,
            folds=self.folds,
            seed=self.seed,
        )
        classification = classified(subject, probe)
        details = {
            "strength": probe.strength,
            "held_out_loss": probe.held_out_loss,
            "held_out_top1": probe.held_out_top1,
            "held_out": probe.held_out,
            "gradient": probe.gradient,
        }
        if probe.warning:
            details["warning"] = probe.warning
        return Measurements(
            classification=classification,
            details=details,
            arrays={"weight_KD": probe.weight_KD, "bias_K": probe.bias_K},
        )

    def _several(self, subject: Subject) -> Measurements:
        folds = Folds(self.holdout, self.folds, self.seed)
        probe = linear_probe_of_several(
            *subject.probe_data(), strengths=self.strengths, split=folds
        )
        scores = label_metrics(subject, probe.probabilities_NK)
        details = {
            "strength": probe.strength,
            "held_out_loss": probe.held_out_loss,
            "held_out": probe.held_out,
            "gradient": probe.gradient,
        }
        if probe.warning:
            details["warning"] = probe.warning
        return Measurements(
            multi_label=scores,
            details=details | left_out(scores),
            arrays={"weight_KD": probe.weight_KD, "bias_K": probe.bias_K},
        )


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """Result of a linear probe. Accuracies in percent.

    Attributes:
        top1, top5: test accuracy (top5 is 100 with five classes or fewer).
        standard_error: binomial standard error of ``top1``.
        strength: the chosen L2 strength; scikit-learn's ``C`` is ``1 / (n_train * strength)``.
        held_out_loss: cross-entropy of the held-out training labels by strength, what the choice
            is made by (empty: no choice).
        held_out_top1: accuracy on them, likewise.
        held_out: how many labels that is, all folds together.
        weight_KD, bias_K: the classifier for raw, not standardized, features.
        classes: label of every row of the weight.
        predictions: predicted label of every test image.
        probabilities_NK: probability of every class for every test image.
        gradient: largest entry of the objective's gradient where the fit stopped.
        warning: what to change where the strengths to choose from seem too few, else None.
        seconds: wall time, features given.
    """

    protocol: ClassVar[str] = "linear"
    top1: float
    top5: float
    standard_error: float
    n_train: int
    n_test: int
    strength: float
    held_out_loss: dict[float, float]
    held_out_top1: dict[float, float]
    held_out: int
    weight_KD: Tensor = field(repr=False)
    bias_K: Tensor = field(repr=False)
    classes: np.ndarray = field(repr=False)
    predictions: np.ndarray = field(repr=False)
    probabilities_NK: np.ndarray = field(repr=False)
    gradient: float
    warning: str | None
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
    folds: int | None = None,
    seed: int = 0,
) -> LinearProbe:
    """Fit on the training features, choose on parts of them, report on the test features.

    Features are standardized with the mean and standard deviation of the training features. The
    least held-out cross-entropy wins.

    Args:
        train_ND, test_ND: features, numpy or torch; the work is done where ``train_ND`` is.
        train_labels, test_labels: integers, one per row.
        strengths: L2 strengths to choose from; one strength is used as it is.
        holdout: fraction of every class's training labels that a fold holds out.
        folds: how many such parts the choice is made on, one after the other; by default as many
            as hold out 2,000 labels together, which is one where there are 20,000.
        seed: of the stratified folds.

    Raises:
        UserError: missing labels, one class only, test classes unseen in training, NaN or
            infinite features, or classes too small to hold anything out.
    """
    began = time.perf_counter()
    if not strengths or min(strengths) <= 0:
        raise UserError(f"strengths must be positive, got {tuple(strengths)}")
    split = Folds(holdout, folds, seed)
    train_ND, target_N, test_ND, test_target_N, classes_K = as_probe_data(
        train_ND, train_labels, test_ND, test_labels
    )
    mean_D, scale_D = standardization(train_ND)
    choice = best_fit(
        partial(Rows, train_ND, mean_D, scale_D),
        target_N,
        len(classes_K),
        strengths,
        split,
    )
    weight_KD, bias_K = choice.fit.raw(mean_D, scale_D)
    tested = chunk_logits(Rows(test_ND, mean_D, scale_D, keep=0), choice.fit.theta_PKE)
    logits_NK = torch.cat([logits_11Kn[0, 0].T for _, _, logits_11Kn in tested])
    ranked_NT = logits_NK.topk(min(5, len(classes_K)), dim=1).indices
    hit_NT = ranked_NT == test_target_N[:, None]
    top1 = 100 * hit_NT[:, 0].double().mean().item()
    return LinearProbe(
        top1=top1,
        top5=100 * hit_NT.any(1).double().mean().item(),
        standard_error=binomial_error(top1, len(test_ND)),
        n_train=len(train_ND),
        n_test=len(test_ND),
        strength=choice.strength,
        held_out_loss=choice.held_out_loss,
        held_out_top1=choice.held_out_top1,
        held_out=choice.held_out,
        weight_KD=weight_KD[0].cpu(),
        bias_K=bias_K[0].cpu(),
        classes=classes_K.cpu().numpy(),
        predictions=classes_K[ranked_NT[:, 0]].cpu().numpy(),
        probabilities_NK=logits_NK.double().softmax(1).cpu().numpy(),
        gradient=choice.fit.gradient_P[0].item(),
        warning=_warn_at_grid_end(choice.strength, choice.held_out_top1),
        seconds=time.perf_counter() - began,
    )


def _warn_at_grid_end(strength: float, held_out_top1: dict[float, float]) -> str | None:
    """Warn, and log, if the best strength may lie outside the range that was tried."""
    tried = list(held_out_top1)
    if not tried or strength not in (tried[0], tried[-1]):
        return None
    side, neighbor = ("strongest", tried[1]) if strength == tried[0] else ("weakest", tried[-2])
    if held_out_top1[strength] <= held_out_top1[neighbor]:
        return None
    warning = (
        f"the {side} of the L2 strengths, {strength:g}, is better on held-out labels than its "
        f"neighbor {neighbor:g} ({held_out_top1[strength]:.2f} against "
        f"{held_out_top1[neighbor]:.2f} %): widen evaluate.linear.strengths"
    )
    log.warning("%s", warning)
    return warning
