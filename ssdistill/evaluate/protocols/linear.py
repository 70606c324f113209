"""Protocol ``linear``: the best regularized logistic regression on frozen features."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from ssdistill.evaluate.probes.linear_probe import STRENGTHS, linear_probe
from ssdistill.evaluate.probes.strength import Folds
from ssdistill.evaluate.protocols import Found, Protocol, classified
from ssdistill.evaluate.subject import Subject
from ssdistill.settings import NonNegativeInt, OpenFraction, Positive, PositiveInt


class Linear(Protocol):
    """Multinomial logistic regression on standardized frozen features.

    The L2 strength of the least cross-entropy on held-out training labels is chosen, the
    regression fitted again to all of them, and the test images are looked at once.

    Args:
        strengths: L2 strengths to choose from.
        holdout: share of every class's training labels that a fold holds out.
        folds: how many such parts the choice is made on; by default as many as hold out 2,000
            labels together, which is one where there are 20,000.
        seed: of the folds.
    """

    kind = "linear"
    paper = "DINOv3's log_regression, arXiv:2508.10104 (strength chosen on a part of the training)"
    by_default = True

    def __init__(
        self,
        *,
        strengths: Annotated[tuple[Positive, ...], Field(min_length=1)] = STRENGTHS,
        holdout: OpenFraction = 0.1,
        folds: PositiveInt | None = None,
        seed: NonNegativeInt = 0,
    ):
        Folds(holdout, folds, seed)  # refuses what cannot be held out before anything is trained
        self.strengths: Sequence[float] = strengths
        self.holdout, self.folds, self.seed = holdout, folds, seed

    def judge(self, subject: Subject) -> Found:
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
        return Found(
            classification=classification,
            details=details,
            arrays={"weight_KD": probe.weight_KD, "bias_K": probe.bias_K},
        )
