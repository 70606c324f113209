"""Linear probe for several labels per image: one logistic regression per class."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ssdistill.errors import UserError
from ssdistill.evaluate.probes.logistic import chunk_logits
from ssdistill.evaluate.probes.strength import Folds, best_fit
from ssdistill.label_free.features import as_feature_pair
from ssdistill.label_free.rows import Rows, standardization

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class SeveralLinearProbe:
    """Result of a linear probe for several labels per image.

    Attributes:
        strength: the chosen L2 strength; scikit-learn's ``C`` is ``1 / (n_train * strength)``.
        held_out_loss: binary cross-entropy of the held-out training labels by strength, averaged
            over images and classes; empty if none was selected.
        held_out: number of held-out images in all folds.
        weight_KD, bias_K: the classifiers for raw, not standardized, features.
        probabilities_NK: of each label of each test image.
        gradient: largest entry of the gradient of the objective when the fit stopped.
        warning: what to change if the range of strengths seems too narrow, else None.
    """

    strength: float
    held_out_loss: dict[float, float]
    held_out: int
    weight_KD: Tensor = field(repr=False)
    bias_K: Tensor = field(repr=False)
    probabilities_NK: np.ndarray = field(repr=False)
    gradient: float
    warning: str | None


def linear_probe_of_several(
    train_ND: Tensor,
    train_NK: Tensor,
    test_ND: Tensor,
    test_NK: Tensor,
    *,
    strengths: Sequence[float],
    split: Folds,
) -> SeveralLinearProbe:
    """Fit on the training features, select the strength on held-out parts, score the test features.

    Features are standardized with the mean and standard deviation of the training features. All
    classes share the L2 strength with the lowest held-out cross-entropy. For a class that all or
    none of the training images have, no weights can be learned: its score is its frequency.

    Args:
        train_NK, test_NK: whether an image has each label, bool; those of the test images are
            ignored.

    Raises:
        UserError: features are NaN or infinite, or all training images have the same labels.
    """
    train_ND, test_ND = as_feature_pair(train_ND, test_ND)
    train_NK = train_NK.to(train_ND.device)
    count_K, total = train_NK.sum(0).double(), len(train_NK)
    learned_C = torch.nonzero((count_K > 0) & (count_K < total))[:, 0]
    if not len(learned_C):
        raise UserError(
            "all training images have the same labels, so no class can be learned; add images with "
            "others"
        )
    mean_D, scale_D = standardization(train_ND)
    rows_of = partial(Rows, train_ND, mean_D, scale_D)
    choice = best_fit(rows_of, train_NK[:, learned_C], len(learned_C), strengths, split)
    weight_1CD, bias_1C = choice.fit.raw(mean_D, scale_D)
    weight_KD = train_ND.new_zeros(len(count_K), train_ND.shape[1])
    bias_K = torch.logit((count_K + 0.5) / (total + 1)).float()
    probabilities_NK = bias_K.double().sigmoid().repeat(len(test_ND), 1)
    weight_KD[learned_C], bias_K[learned_C] = weight_1CD[0], bias_1C[0]
    tested = chunk_logits(Rows(test_ND, mean_D, scale_D, keep=0), choice.fit.theta_PKE)
    logits_NC = torch.cat([logits_11Cn[0, 0].T for _, _, logits_11Cn in tested])
    probabilities_NK[:, learned_C] = logits_NC.double().sigmoid()
    return SeveralLinearProbe(
        strength=choice.strength,
        held_out_loss=choice.held_out_loss,
        held_out=choice.held_out,
        weight_KD=weight_KD.cpu(),
        bias_K=bias_K.cpu(),
        probabilities_NK=probabilities_NK.cpu().numpy(),
        gradient=choice.fit.gradient_P[0].item(),
        warning=_warn_at_grid_end(choice.strength, choice.held_out_top1),
    )


def _warn_at_grid_end(strength: float, right_by: dict[float, float]) -> str | None:
    """Warn, and log, if the best strength may lie outside the range that was tried."""
    tried = list(right_by)
    if not tried or strength not in (tried[0], tried[-1]):
        return None
    side, neighbor = ("strongest", tried[1]) if strength == tried[0] else ("weakest", tried[-2])
    # If classes are perfectly separable, a weaker penalty always has a smaller loss.
    if right_by[strength] <= right_by[neighbor]:
        return None
    warning = (
        f"the {side} of the L2 strengths, {strength:g}, is better on held-out labels than its "
        f"neighbor {neighbor:g} ({right_by[strength]:.2f} against {right_by[neighbor]:.2f} % "
        "correct): widen evaluate.linear.strengths"
    )
    log.warning("%s", warning)
    return warning
