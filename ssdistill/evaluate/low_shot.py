"""Protocol ``low_shot``: logistic regression on a few labels per class, over several draws."""

import time
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from ssdistill.errors import UserError
from ssdistill.evaluate.features import as_probe_data
from ssdistill.evaluate.logistic import fit_logistic, standardisation, with_ones

C = 1.0
"""scikit-learn's default inverse strength. A handful of labels cannot be split to choose one."""


@dataclass(frozen=True, eq=False)
class LowShotProbe:
    """What a low-shot probe found. Accuracies in percent, on the same test images every draw.

    Attributes:
        top1: mean test accuracy over the draws.
        std: standard deviation over the draws (n - 1).
        top1_by_draw: accuracy of every draw.
        indices: training rows of every draw, class by class.
        seconds: wall time, features given.
    """

    protocol: ClassVar[str] = "low_shot"
    top1: float
    std: float
    top1_by_draw: tuple[float, ...]
    labels_per_class: int
    draws: int
    n_test: int
    indices: Tensor = field(repr=False)
    seconds: float

    def metrics(self) -> dict[str, float]:
        """Under the names of the record."""
        return {"probe/low_shot/top1": self.top1, "probe/low_shot/top1_std": self.std}


def low_shot_probe(
    train_ND: Any,
    train_labels: Any,
    test_ND: Any,
    test_labels: Any,
    *,
    labels_per_class: int = 5,
    draws: int = 10,
    seed: int = 0,
) -> LowShotProbe:
    """Mean and spread of the test accuracy when only a few training labels are known.

    Features are standardised with the statistics of all training features, which needs no
    label. The L2 strength is fixed: scikit-learn's ``C = 1`` on the drawn labels. All draws
    are solved together.

    Args:
        train_ND, test_ND: features, numpy or torch; the work is done where ``train_ND`` is.
        train_labels, test_labels: integers, one per row.
        labels_per_class: labels drawn from every class, without replacement.
        draws: how many sets of labels, at least two.
        seed: of the draws.

    Raises:
        UserError: a class with too few labels (named), fewer than two draws, and what every
            probe refuses (see `features.as_probe_data`).
    """
    began = time.perf_counter()
    if labels_per_class < 1 or draws < 2:
        raise UserError(
            f"low_shot needs labels_per_class >= 1 and draws >= 2, got {labels_per_class}, {draws}"
        )
    train_ND, target_N, test_ND, test_target_N, classes_K = as_probe_data(
        train_ND, train_labels, test_ND, test_labels
    )
    index_PN = draw_labels(target_N, classes_K, labels_per_class, draws, seed)
    mean_D, scale_D = standardisation(train_ND)
    x_PEN = with_ones((train_ND[index_PN] - mean_D) / scale_D)
    strength_P = torch.full((draws,), 1 / (C * index_PN.shape[1]))
    fit = fit_logistic(x_PEN, target_N[index_PN], len(classes_K), strength_P, tolerance=1e-5)
    test_EN = with_ones((test_ND - mean_D) / scale_D)
    hits = [(theta_KE.float() @ test_EN).argmax(0) == test_target_N for theta_KE in fit.theta_PKE]
    top1_P = 100 * torch.stack(hits).double().mean(1)
    return LowShotProbe(
        top1=top1_P.mean().item(),
        std=top1_P.std().item(),
        top1_by_draw=tuple(top1_P.tolist()),
        labels_per_class=labels_per_class,
        draws=draws,
        n_test=len(test_ND),
        indices=index_PN.cpu(),
        seconds=time.perf_counter() - began,
    )


def draw_labels(
    target_N: Tensor, classes_K: Tensor, labels_per_class: int, draws: int, seed: int
) -> Tensor:
    """Rows of the training set, (draws, K * labels_per_class), class by class.

    Raises:
        UserError: naming the first class that has too few labels.
    """
    generator = torch.Generator().manual_seed(seed)
    rows_by_class = [(target_N.cpu() == k).nonzero()[:, 0] for k in range(len(classes_K))]
    for label, rows in zip(classes_K.tolist(), rows_by_class, strict=True):
        if len(rows) < labels_per_class:
            raise UserError(
                f"class {label} has {len(rows)} training labels, "
                f"low_shot.labels_per_class={labels_per_class} needs more"
            )
    chosen = [
        torch.cat(
            [
                r[torch.randperm(len(r), generator=generator)[:labels_per_class]]
                for r in rows_by_class
            ]
        )
        for _ in range(draws)
    ]
    return torch.stack(chosen).to(target_N.device)
