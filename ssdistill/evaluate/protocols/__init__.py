"""Evaluation protocols with labels: one file each, found automatically.

A file holds a protocol's settings, what it reports and, where it is short, its algorithm; a long
or shared algorithm belongs in ``probes``.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ssdistill.errors import UserError, nearest
from ssdistill.evaluate.classification import Classification, classify
from ssdistill.evaluate.multi_label import MultiLabel, multi_label_metrics
from ssdistill.evaluate.result import Result
from ssdistill.evaluate.subject import Subject
from ssdistill.settings.registry import settings_of


@dataclass(frozen=True, eq=False)
class Measurements:
    """Return value of a protocol, before it is named and timed.

    Attributes:
        measures: numbers by their short names, beside those of ``classification`` or
            ``multi_label``.
        classification: answers on the test images, where there is one per image.
        multi_label: scores of all labels, if images may have several.
        details: plain values worth keeping.
        arrays: larger things by name.
    """

    measures: Mapping[str, float] = field(default_factory=dict)
    classification: Classification | None = None
    multi_label: MultiLabel | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, Any] = field(default_factory=dict)


class Protocol(ABC):
    """A way to evaluate an encoder: ``run(subject) -> Result``.

    Keyword-only constructor arguments are the config, each kept as an attribute of the same
    name. Where a protocol has presets, one argument is called ``preset``, the arguments that a
    preset decides default to None, and the constructor fills them from :meth:`chosen`.

    A subclass sets:
        kind: name in a config and, with the preset, in every metric.
        paper: whose protocol it is.
        by_default: True where a config that says nothing asks for it.
        trains: True where (a copy of) the encoder itself is trained: such a protocol is skipped
            for files for a runtime and for raw pixels, which cannot be.
        several: True where images may have several labels, which another protocol refuses.
        reads_labels: False where the labels of the subject's own images are not read.
        presets: by name, the settings of a paper or a library where they are not the defaults.
    """

    kind: ClassVar[str]
    paper: ClassVar[str]
    by_default: ClassVar[bool] = False
    trains: ClassVar[bool] = False
    several: ClassVar[bool] = False
    reads_labels: ClassVar[bool] = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    preset: str | None = None

    @property
    def name(self) -> str:
        """Kind and, where one was chosen, preset: ``knn``, ``knn_dinov2``."""
        return f"{self.kind}_{self.preset}" if self.preset else self.kind

    def run(self, subject: Subject) -> Result:
        """Evaluate an encoder, which stays unchanged.

        Raises:
            UserError: missing labels, broken features, or settings that do not suit the data.
        """
        began = time.perf_counter()
        if not self.takes_several() and getattr(subject, "multi_label", False):
            raise UserError(self.refusal())
        output = self.evaluate(subject)
        measures: dict[str, float] = {}
        for found in (output.classification, output.multi_label):
            measures |= found.measures if found else {}
        measures |= output.measures
        return Result(
            protocol=self.name,
            metrics={f"probe/{self.name}/{name}": value for name, value in measures.items()},
            seconds=time.perf_counter() - began,
            settings=settings_of(self),
            details=dict(output.details),
            classification=output.classification,
            multi_label=output.multi_label,
            arrays=dict(output.arrays),
        )

    def check(self, num_train: int) -> None:
        """Check that the number of training images suffices, before anything is trained.

        Raises:
            UserError: naming the setting at fault.
        """
        return  # most have an answer for any number

    def check_pixels(self, images: Any) -> None:
        """Check that what is done to images is defined for theirs, before anything is trained.

        Args:
            images: an :class:`~ssdistill.data.image_set.ImageSet`, or what has ``images``.

        Raises:
            UserError: saying what the protocol requires.
        """
        return  # most read features, whatever these are of

    @classmethod
    def takes_several(cls) -> bool:
        """Whether it can be run on images that may have several labels."""
        return cls.several or not cls.reads_labels

    @classmethod
    def refusal(cls) -> str:
        """Return why images with several labels are refused, and which protocols accept them."""
        from ssdistill.settings.registry import PROTOCOLS

        able = [kind for kind, other in PROTOCOLS.classes.items() if other.several]
        return (
            f"{cls.kind} requires one label per image, but these images may have several; use "
            f"{', '.join(sorted(able))}"
        )

    @abstractmethod
    def evaluate(self, subject: Subject) -> Measurements:
        """Compute the metrics of this subject; :meth:`run` names and times them."""

    def chosen(self, name: str, value: Any, default: Any) -> Any:
        """``value`` unless None, else what the preset says of ``name``, else ``default``.

        Raises:
            UserError: there is no such preset.
        """
        if self.preset is not None and self.preset not in self.presets:
            raise UserError(
                f"{self.kind}.preset: '{self.preset}' is unknown"
                f"{nearest(self.preset, self.presets)}; known: {', '.join(self.presets)}"
            )
        if value is not None:
            return value
        return self.presets.get(self.preset or "", {}).get(name, default)


def classified(subject: Subject, probe: Any) -> Classification:
    """The answers of a probe that has ``probabilities_NK`` of the test images and ``classes``."""
    return classify(
        subject.labels("test"),
        probabilities_NK=probe.probabilities_NK,
        classes=probe.classes,
        class_names=subject.class_names,
    )


def label_metrics(subject: Subject, scores_NK: Any) -> MultiLabel:
    """The metrics of a probe's scores for several labels of the test images."""
    return multi_label_metrics(
        subject.labels("test"),
        scores_NK,
        trained_NK=subject.labels("train"),
        class_names=subject.class_names,
    )


def left_out(multi_label: MultiLabel) -> dict[str, str]:
    """What of several labels the means do not count, for a protocol's details."""
    return {"classes_left_out": multi_label.left_out} if multi_label.left_out else {}
