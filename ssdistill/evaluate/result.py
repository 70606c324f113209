"""Result of a protocol."""

from dataclasses import dataclass, field
from typing import Any

from ssdistill.errors import UserError, nearest, shortened
from ssdistill.evaluate.classification import Classification
from ssdistill.evaluate.multi_label import MultiLabel
from ssdistill.evaluate.paired import MARGIN, Paired, paired_test


@dataclass(frozen=True, eq=False)
class Result:
    """Result of one protocol for one encoder.

    Attributes:
        protocol: its full name, preset included: the second part of every metric's name.
        metrics: ``probe/<protocol>/<measure>`` to number, as in records; fractions in percent.
        seconds: wall time, the encoding of images included where it was not cached.
        settings: every setting it was run with, presets spelled out; plain values.
        details: what else is worth knowing (chosen strengths, …); plain values.
        classification: the answers on the test images, where there is one per image.
        multi_label: the scores of all labels, if images may have several.
        arrays: larger things by name, such as a classifier's weights.
    """

    protocol: str
    metrics: dict[str, float]
    seconds: float
    settings: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    classification: Classification | None = None
    multi_label: MultiLabel | None = None
    arrays: dict[str, Any] = field(default_factory=dict, repr=False)

    def __getitem__(self, measure: str) -> float:
        """A measure by its short name: ``result["top1"]``.

        Raises:
            UserError: there is none of that name.
        """
        start = f"probe/{self.protocol}/"
        if start + measure not in self.metrics:
            known = [name.removeprefix(start) for name in self.metrics]
            raise UserError(
                f"'{self.protocol}' has no measure '{measure}'{nearest(measure, known)}; "
                f"known: {', '.join(known)}"
            )
        return self.metrics[start + measure]

    def paired(self, other: "Result", margin: float = MARGIN) -> Paired:
        """This result against another on the same test images, see :func:`paired_test`.

        That the images are the same shows in their labels only.

        Raises:
            UserError: other protocols, other settings (but for the seed), other test images, or
                no answer per image.
        """
        if not isinstance(other, Result):
            text = shortened(repr(other))
            raise UserError(f"'{self.protocol}' cannot be compared with {text}: pass a Result")
        first, second = self.classification, other.classification
        if self.protocol != other.protocol:
            raise UserError(
                f"'{self.protocol}' cannot be compared with '{other.protocol}'; use one protocol"
            )
        for name, value in self.settings.items():
            if name != "seed" and value != other.settings.get(name, value):
                raise UserError(
                    f"'{self.protocol}' with {name}={value} cannot be compared with "
                    f"{name}={other.settings[name]}; use one setting"
                )
        if first is None or second is None:
            raise UserError(f"'{self.protocol}' has no predictions by image; compare its metrics")
        if len(first.targets) != len(second.targets) or (first.targets != second.targets).any():
            raise UserError(
                "a paired test requires the same test images in the "
                "same order; evaluate both on the same data"
            )
        return paired_test(first.targets, first.predictions, second.predictions, margin=margin)
