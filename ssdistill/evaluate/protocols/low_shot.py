"""Protocol ``low_shot``: few-shot classification on frozen features."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from ssdistill.errors import UserError
from ssdistill.evaluate.probes.low_shot_probe import low_shot_probe
from ssdistill.evaluate.protocols import Found, Protocol
from ssdistill.evaluate.subject import Subject
from ssdistill.settings import NonNegativeInt, OpenFraction, PositiveInt


class LowShot(Protocol):
    """Logistic regression on a few of the labels, several times.

    The labels are a number of every class or a share of them; every class has at least one. The
    L2 strength is scikit-learn's ``C = 1`` whatever the number of labels.

    Args:
        preset: ``1pct`` or ``10pct`` of every class's labels, drawn 5 times; the name of the
            protocol then ends in it.
        labels_per_class: labels of every class in a draw; 5 unless ``fraction`` is given.
        fraction: share of every class's labels in a draw, instead of ``labels_per_class``.
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
        given = {"preset": preset, "labels_per_class": labels_per_class, "fraction": fraction}
        given = [name for name, value in given.items() if value is not None]
        if len(given) > 1:
            raise UserError(f"low_shot takes only one of {', '.join(given)}")
        self.preset, self.seed = preset, seed
        self.fraction = self.chosen("fraction", fraction, None)
        self.labels_per_class = labels_per_class
        if not given:
            self.labels_per_class = 5
        self.draws = self.chosen("draws", draws, 10)

    def judge(self, subject: Subject) -> Found:
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
        return Found(measures, details=details)
