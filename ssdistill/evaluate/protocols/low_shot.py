"""Protocol ``low_shot``: few-shot classification on frozen features."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from ssdistill.errors import UserError
from ssdistill.evaluate.probes.logistic import MEMORY, fit_logistic, score
from ssdistill.evaluate.protocols import Measurements, Protocol
from ssdistill.evaluate.subject import Subject
from ssdistill.evaluate.targets import as_probe_data
from ssdistill.label_free.rows import Rows, standardization
from ssdistill.settings import NonNegativeInt, OpenFraction, PositiveInt

C = 1.0
"""scikit-learn's default inverse strength, however many labels are drawn: the penalty is a fixed
prior on the weights that counts the less the more labels there are. Nothing is chosen: a handful
of labels cannot be split to choose by, and every draw stays one fit."""
TOGETHER = 2**29
"""Bytes that draws solved together may take; one draw alone may take more."""


class LowShot(Protocol):
    """Logistic regression on a few of the labels, several times.

    The labels are a number of every class or a fraction of them; every class has at least one. The
    L2 strength is scikit-learn's ``C = 1`` whatever the number of labels.

    Args:
        preset: ``1pct`` or ``10pct`` of every class's labels, drawn 5 times; the name of the
            protocol then ends in it.
        labels_per_class: labels of every class in a draw; 5 unless ``fraction`` is given.
        fraction: part of every class's labels in a draw, instead of ``labels_per_class``.
        draws: how often they are drawn; 10 unless the preset says otherwise.
        seed: of the draws; the same for every model, so that models share them.

    Raises:
        UserError: more than one of preset, labels_per_class and fraction.
    """

    kind = "low_shot"
    paper = "the field's few-label protocols (SimCLR's 1 % and 10 %, arXiv:2002.05709, frozen)"
    by_default = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "1pct": {"fraction": 0.01, "draws": 5},
        "10pct": {"fraction": 0.1, "draws": 5},
    }

    def __init__(
        self,
        *,
        preset: Literal["1pct", "10pct"] | None = None,
        labels_per_class: PositiveInt | None = None,
        fraction: OpenFraction | None = None,
        draws: Annotated[int, Field(ge=2)] | None = None,
        seed: NonNegativeInt = 0,
    ):
        sizes = {"preset": preset, "labels_per_class": labels_per_class, "fraction": fraction}
        chosen = [name for name, value in sizes.items() if value is not None]
        if len(chosen) > 1:
            found = " and ".join(f"{name}={sizes[name]}" for name in chosen)
            raise UserError(f"low_shot: {found} are set; set only one of them")
        self.preset, self.seed = preset, seed
        self.fraction = self.chosen("fraction", fraction, None)
        self.labels_per_class = labels_per_class
        if not chosen:
            self.labels_per_class = 5
        self.draws = self.chosen("draws", draws, 10)

    def evaluate(self, subject: Subject) -> Measurements:
        probe = low_shot_probe(
            *subject.probe_data(),
            labels_per_class=self.labels_per_class,
            fraction=self.fraction,
            draws=self.draws,
            seed=self.seed,
        )
        measures = {
            "top1": probe.top1,
            "top1_std": probe.std,
            "top1_stderr": probe.std / probe.draws**0.5,
        }
        details = {"labels": probe.labels, "top1_by_draw": probe.top1_by_draw}
        return Measurements(measures, details=details)


@dataclass(frozen=True, eq=False)
class LowShotProbe:
    """Result of a low-shot probe. Accuracies in percent, on the same test images every draw.

    Attributes:
        top1: mean test accuracy over the draws.
        std: standard deviation over the draws (n - 1).
        top1_by_draw: accuracy of every draw.
        labels: how many a draw has, all classes together.
        indices: training rows of every draw, class by class.
        seconds: wall time, features given.
    """

    protocol: ClassVar[str] = "low_shot"
    top1: float
    std: float
    top1_by_draw: tuple[float, ...]
    labels: int
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
    labels_per_class: int | None = None,
    fraction: float | None = None,
    draws: int = 10,
    seed: int = 0,
    together: int = TOGETHER,
) -> LowShotProbe:
    """Mean and spread of the test accuracy when only a few training labels are known.

    Features are standardized with the statistics of all training features, which needs no
    label. The L2 strength is fixed: scikit-learn's ``C = 1`` on the drawn labels. As many draws
    as fit into ``together`` bytes are solved at once.

    Args:
        train_ND, test_ND: features, numpy or torch; the work is done where ``train_ND`` is.
        train_labels, test_labels: integers, one per row.
        labels_per_class: labels drawn from every class, without replacement; 5 where there is
            no ``fraction`` either.
        fraction: instead, this fraction of every class's labels, at least one.
        draws: how many sets of labels, at least two.
        seed: of the draws.

    Raises:
        UserError: a class with too few labels (named), fewer than two draws, both or impossible
            numbers of labels, and what every probe refuses (see `targets.as_probe_data`).
    """
    began = time.perf_counter()
    if draws < 2:
        raise UserError(f"low_shot.draws={draws}: must be at least 2")
    train_ND, target_N, test_ND, test_target_N, classes_K = as_probe_data(
        train_ND, train_labels, test_ND, test_labels
    )
    quota_K = labels_to_draw(target_N, classes_K, labels_per_class, fraction)
    index_PN = draw_labels(target_N, quota_K, draws, seed)
    mean_D, scale_D = standardization(train_ND)
    tested = Rows(test_ND, mean_D, scale_D, keep=0)
    size = bytes_of_a_draw(index_PN.shape[1], train_ND.shape[1], len(classes_K))
    top1_by_group = []
    for index_GN in index_PN.split(max(1, together // size)):
        rows = Rows(train_ND, mean_D, scale_D, index_GN)
        strength_G = torch.full((len(index_GN),), 1 / (C * len(rows)))
        fit = fit_logistic(rows, target_N[index_GN], len(classes_K), strength_G, tolerance=1e-5)
        top1_by_group.append(score(tested, test_target_N, fit.theta_PKE)[0])
    top1_P = torch.cat(top1_by_group)
    return LowShotProbe(
        top1=top1_P.mean().item(),
        std=top1_P.std().item(),
        top1_by_draw=tuple(top1_P.tolist()),
        labels=index_PN.shape[1],
        draws=draws,
        n_test=len(test_ND),
        indices=index_PN.cpu(),
        seconds=time.perf_counter() - began,
    )


def labels_to_draw(
    target_N: Tensor, classes_K: Tensor, labels_per_class: int | None, fraction: float | None
) -> Tensor:
    """How many labels of every class are drawn, (K,).

    Raises:
        UserError: both numbers, impossible ones, or a class that has too few labels (the first).
    """
    if labels_per_class is not None and fraction is not None:
        raise UserError(
            f"low_shot: labels_per_class={labels_per_class} and fraction={fraction:g} are both "
            "set; set only one of them"
        )
    count_K = torch.bincount(target_N.cpu(), minlength=len(classes_K))
    if fraction is not None:
        if not 0 < fraction < 1:
            raise UserError(f"low_shot.fraction={fraction:g}: must be between 0 and 1")
        return (fraction * count_K).round().long().clamp(min=1)
    per_class = 5 if labels_per_class is None else labels_per_class
    if per_class < 1:
        raise UserError(f"low_shot.labels_per_class={per_class}: must be at least 1")
    for label, count in zip(classes_K.tolist(), count_K.tolist(), strict=True):
        if count < per_class:
            raise UserError(
                f"class {label} has {count} training labels, fewer than "
                f"low_shot.labels_per_class={per_class}; lower it"
            )
    return torch.full_like(count_K, per_class)


def draw_labels(target_N: Tensor, quota_K: Tensor, draws: int, seed: int) -> Tensor:
    """Rows of the training set, (draws, sum of quotas), class by class."""
    generator = torch.Generator().manual_seed(seed)
    rows_by_class = [(target_N.cpu() == k).nonzero()[:, 0] for k in range(len(quota_K))]
    chosen = [
        torch.cat(
            [
                rows[torch.randperm(len(rows), generator=generator)[:quota]]
                for rows, quota in zip(rows_by_class, quota_K.tolist(), strict=True)
            ]
        )
        for _ in range(draws)
    ]
    return torch.stack(chosen).to(target_N.device)


def bytes_of_a_draw(labels: int, width: int, classes: int) -> int:
    """About how much memory a draw takes while it is solved with others.

    Its standardized rows, the steps that L-BFGS remembers, and the moments and factors of E^2
    float64 numbers.
    """
    return 4 * labels * width + 8 * (2 * MEMORY + 8) * classes * width + 4 * 8 * width**2
