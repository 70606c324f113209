"""Results of evaluating several encoders on the same images."""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from torch import Tensor

from ssdistill.evaluate.opening.images import Shown
from ssdistill.evaluate.paired import MARGIN, Paired
from ssdistill.evaluate.protocols import Protocol
from ssdistill.evaluate.result import Result
from ssdistill.settings import Size

LOOKED_AT = 2000
"""Largest number of test images used by label-free metrics and the map; evenly spread."""


@dataclass(frozen=True, eq=False)
class Findings:
    """Results of one model.

    Attributes:
        name: short, for tables; source: what was opened.
        image_size: side of the images it was given, in pixels, or height and width.
        metrics: every number under its name in records.
        results: of every protocol that could be run, by its name.
        refused: by protocol, why it could not.
        notices: what must be known to read the numbers rightly.
        looked_at_ND: embeddings of the test images that :attr:`Probed.rows` names.
    """

    name: str
    source: str
    image_size: Size
    metrics: dict[str, float]
    results: dict[str, Result] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    notices: tuple[str, ...] = ()
    looked_at_ND: Tensor | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Comparison:
    """A model against the first one, on the same test images."""

    model: str
    reference: str
    protocol: str
    paired: Paired


@dataclass(frozen=True, eq=False)
class Probed:
    """Results of ``ssdistill probe``.

    Attributes:
        models: in the order they were given; the first is what the others are compared with.
        shown: the images.
        protocols: that were requested; none where the images have no labels.
        margin: points of accuracy within which two models count as equally good.
        left_out: protocols that are run by default, but not on images with several labels.
    """

    models: tuple[Findings, ...]
    shown: Shown = field(repr=False)
    protocols: tuple[Protocol, ...] = field(repr=False)
    margin: float = MARGIN
    left_out: tuple[str, ...] = ()

    @property
    def rows(self) -> slice:
        """Positions of the test images used by label-free metrics and the map."""
        return spread(len(self.shown.test.images))

    @property
    def labels_N(self) -> np.ndarray | None:
        """Labels of the test images that :attr:`rows` names; None unless there is one of each."""
        return self.shown.labels_of(self.rows)

    @cached_property
    def classes(self) -> tuple[np.ndarray | None, list[str]]:
        """Positions in a list of names of those images' classes, and this list, for a map.

        Classes that none of the images has are not in it; None and no names without labels.
        """
        if self.labels_N is None:
            return None, []
        label_K, class_N = np.unique(self.labels_N, return_inverse=True)
        names = getattr(self.shown.test, "class_names", None)
        if names is None or int(label_K.max()) >= len(names):
            return class_N, [str(label) for label in label_K.tolist()]
        return class_N, [names[label] for label in label_K.tolist()]

    @cached_property
    def comparisons(self) -> tuple[Comparison, ...]:
        """Every model against the first, by every protocol that answers image by image."""
        first, *others = self.models
        return tuple(
            Comparison(
                model.name,
                first.name,
                name,
                result.paired(first.results[name], self.margin),
            )
            for model in others
            for name, result in model.results.items()
            if name in first.results
            and result.classification is not None
            and first.results[name].classification is not None
        )

    @property
    def notices(self) -> list[str]:
        """Notices to print beside the tables, one line each."""
        lines = []
        if not self.shown.labeled:
            lines.append("no labels: skipping evaluation; label-free metrics only")
        if self.left_out:
            lines.append(
                f"images may have several labels: {', '.join(self.left_out)} skipped, which "
                "requires one label per image"
            )
        names: dict[str, list[str]] = {}
        for model in self.models:
            refused = [f"{name} skipped: {why}" for name, why in model.refused.items()]
            scores = [r.multi_label for r in model.results.values() if r.multi_label]
            left_out = [
                f"excluded from means over classes: {s.left_out}" for s in scores[:1] if s.left_out
            ]
            for notice in (*model.notices, *left_out, *refused):
                names.setdefault(notice, []).append(model.name)
        return lines + [f"{', '.join(whose)}: {notice}" for notice, whose in names.items()]


def spread(count: int) -> slice:
    """Evenly spread positions of the images used by label-free metrics and the map."""
    return slice(0, count, -(-count // LOOKED_AT))
