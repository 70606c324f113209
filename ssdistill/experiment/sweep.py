"""The section ``sweep``: many points of an experiment, and the number that chooses one of them."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from ssdistill.errors import nearest, not_one_of
from ssdistill.experiment.sweep_values import Choices, Range, parse_parameters
from ssdistill.settings import NonNegativeInt, OpenFraction, PositiveInt, Settings

HELD_OUT = "held_out"
"""What a sweep may be chosen by beside label-free metrics: a probe of held-out training labels."""
LABEL_FREE = (
    *("agree/cka", "agree/cosine", "agree/cosine_p01", "agree/mapped_cosine"),
    *("agree/knn_overlap", "agree/rank_correlation"),
    *("collapse/std", "collapse/effective_rank", "collapse/uniformity", "collapse/alignment"),
    *("collapse/alpha", "collapse/lidar"),
    *("compress/params", "compress/params_nonzero", "compress/macs", "compress/bytes"),
    *("compress/bytes_gzip", "compress/latency_ms", "compress/latency_batch64_ms"),
    *("compress/smaller", "compress/speedup", "compress/speedup_batch64"),
)
"""Metrics of a model that no label is read for, by their names in records."""
Criterion = Literal["rankme", "lidar", "agreement", "held_out"]


def _label_free(metric: str) -> str:
    if metric.startswith("probe/"):
        raise ValueError(
            f"'{metric}' is measured with test labels, which may not choose; use {HELD_OUT} (a "
            "probe on a split of the training labels) or a label-free metric, such as "
            "collapse/lidar"
        )
    if metric not in (*LABEL_FREE, HELD_OUT):
        known = (HELD_OUT, *LABEL_FREE)
        raise ValueError(
            f"'{metric}' is unknown{nearest(metric, known)}; known: {', '.join(known)}"
        )
    return metric


Metric = Annotated[str, AfterValidator(_label_free)]


class HeldOutSettings(Settings):
    """A linear probe that is trained on one part of the training labels and tested on another.

    Args:
        fraction: of every class's labels, held out to test on.
        images: training images that are looked at, at most; evenly spaced.
        seed: of the split.
    """

    fraction: OpenFraction = 0.2
    images: Annotated[int, Field(ge=20)] = 5000
    seed: NonNegativeInt = 0


class StopEarlySettings(Settings):
    """When a point is stopped during its training.

    The criterion is measured on training images every so often. A point whose best value so far
    is below the median of the finished points at the same fraction of the training is stopped.

    Args:
        by: ``rankme``, ``lidar`` or ``agreement`` with the teacher, label-free as in ``select``;
            or ``held_out``, a probe of held-out training labels.
        every: fraction of the training between two measurements.
        after: fraction of the training before which none is stopped.
        points: finished points that a median requires.
    """

    by: Criterion
    every: OpenFraction = 0.1
    after: OpenFraction = 0.2
    points: PositiveInt = 4


class SweepSettings(Settings):
    """Many points: the experiment with other values of some of its settings.

    Args:
        search: ``grid``, every combination; ``random``; or ``tpe``, the tree-structured Parzen
            estimator of Optuna (arXiv:1907.10902), which learns from finished points.
        points: how many; a grid has as many as there are combinations.
        seed: of random values, and of the estimator.
        maximize, minimize: the metric that chooses, one of both: a label-free metric of the
            report, or ``held_out``.
        model: row of the table that it is read from; null for the distilled student, or for the
            teacher where nothing is distilled.
        parameters: what varies, by dotted keys: a list of values, or a range
            ``{low, high, log, int, step}``.
        held_out: the split of the training labels, where they choose or stop.
        at_once: points that are chosen together, before any of them has ended (``tpe`` only);
            with ``--on``, they run side by side. ``points`` must be divisible by it.
        stop_early: stop points that do worse than others (``tpe`` only); null for none.
        storage: URL of Optuna's database (``tpe`` only); null for a file in the sweep's folder.
    """

    search: Literal["grid", "random", "tpe"]
    points: PositiveInt | None = None
    seed: NonNegativeInt = 0
    maximize: Metric | None = None
    minimize: Metric | None = None
    model: str | None = None
    parameters: Annotated[dict[str, Any], AfterValidator(parse_parameters)]
    held_out: HeldOutSettings = HeldOutSettings()
    at_once: PositiveInt = 1
    stop_early: StopEarlySettings | None = None
    storage: str | None = None

    @model_validator(mode="after")
    def _complete(self) -> "SweepSettings":
        if problem := not_one_of({"maximize": self.maximize, "minimize": self.minimize}):
            raise ValueError(problem)
        if self.minimize == HELD_OUT:
            raise ValueError(f"minimize: {HELD_OUT} is an accuracy; use maximize")
        if self.search == "grid":
            if self.points is not None:
                raise ValueError("points: a grid has as many as combinations; remove points")
            for key, values in self.parameters.items():
                if isinstance(values, Range) and values.step is None:
                    raise ValueError(
                        f"parameters.{key}: a grid requires a list of values, or a range with step"
                    )
        elif self.points is None:
            raise ValueError(f"points: required with search={self.search}")
        if self.points and (rest := self.points % self.at_once):
            less = f"{self.points - rest} or " if rest < self.points else ""
            raise ValueError(
                f"points: {self.points} is not divisible by at_once={self.at_once}; use "
                f"{less}{self.points - rest + self.at_once}"
            )
        for name in ("at_once", "stop_early", "storage"):
            default = type(self).model_fields[name].default
            if self.search != "tpe" and getattr(self, name) != default:
                raise ValueError(f"{name}: requires search=tpe; remove {name}, or set search=tpe")
        return self

    @property
    def metric(self) -> str:
        """What chooses."""
        return self.maximize or self.minimize or ""

    @property
    def reads_labels(self) -> bool:
        """Whether training labels choose a point, or stop one."""
        return HELD_OUT in (self.metric, self.stop_early and self.stop_early.by)

    @property
    def varied(self) -> dict[str, Choices | Range]:
        """What varies, by dotted key."""
        return self.parameters


@dataclass(frozen=True)
class Watched:
    """The trial of Optuna that a training reports to; plain values, for another process too.

    Attributes:
        storage, study, trial: where it is kept.
        role: of the training that is watched.
        stop_early, held_out: settings of the sweep.
    """

    storage: str
    study: str
    trial: int
    role: str
    stop_early: StopEarlySettings
    held_out: HeldOutSettings
