"""Protocol ``knn``: the vote of the most similar training images."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from ssdistill.errors import UserError
from ssdistill.evaluate.probes.knn_probe import Weights, knn_probe
from ssdistill.evaluate.probes.several_knn import knn_probe_of_several
from ssdistill.evaluate.protocols import (
    Measurements,
    Protocol,
    classified,
    label_metrics,
    left_out,
)
from ssdistill.evaluate.subject import Subject
from ssdistill.label_free.vectors import Distance
from ssdistill.settings import Positive, PositiveInt

ALWAYS = (1, 20)
"""Numbers of neighbors that are reported whatever else is requested."""


class Knn(Protocol):
    """Weighted vote of the nearest training images.

    ``top1`` and all that follows from answers are of ``k`` and ``temperature``, fixed beforehand
    and never chosen on the test images. Beside it stand 1 and 20 neighbors and those of ``ks``,
    ``top1_k20`` and so on, and in the details every pair of k and temperature. If images
    may have several labels, the score of a label is its fraction of the votes, and ``map``
    replaces ``top1``. Presets:

    - ``dinov2``: k of 10, 20, 100, 200, temperature 0.07 (dinov2/eval/knn.py, DINOv3's the
      same). ``top1`` is of 20, the number that DINO (arXiv:2104.14294) reports.
    - ``instdisc``: 200 neighbors, temperature 0.07 (arXiv:1805.01978).
    - ``lightly``: 200 neighbors, temperature 0.1 (lightly's benchmarks).
    - ``compress``, ``simreg``: the nearest image by cosine (CompRess, NeurIPS 2020; SimReg,
      BMVC 2021).
    - ``solo_learn``: 20 neighbors by Euclidean distance with weights 1 / distance, as its
      online k-NN; the bank there is of augmented views, here of plain images.

    Args:
        preset: provides the values of the settings that are not specified.
        k: neighbors that vote; by default 20.
        temperature: of the weights exp(cosine / temperature); by default 0.07.
        ks: further numbers of neighbors.
        temperatures: further temperatures, answered for every k.
        distance: ``cosine`` or ``euclidean``.
        weights: ``softmax`` (of cosines), ``inverse`` (of distances) or ``uniform``.
    """

    kind = "knn"
    paper = "Wu et al., CVPR 2018, arXiv:1805.01978"
    by_default = True
    several = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "dinov2": {"k": 20, "temperature": 0.07, "ks": (10, 20, 100, 200)},
        "instdisc": {"k": 200, "temperature": 0.07},
        "lightly": {"k": 200, "temperature": 0.1},
        "compress": {"k": 1},
        "simreg": {"k": 1},
        "solo_learn": {"k": 20, "distance": "euclidean", "weights": "inverse"},
    }

    def __init__(
        self,
        *,
        preset: Literal["dinov2", "instdisc", "lightly", "compress", "simreg", "solo_learn"]
        | None = None,
        k: PositiveInt | None = None,
        temperature: Positive | None = None,
        ks: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] | None = None,
        temperatures: tuple[Positive, ...] | None = None,
        distance: Distance | None = None,
        weights: Weights | None = None,
    ):
        self.preset = preset
        self._requested = {"k": k, "ks": max(ks, default=None) if ks else None}
        self.k: int = self.chosen("k", k, 20)
        self.temperature: float = self.chosen("temperature", temperature, 0.07)
        self.ks: tuple[int, ...] = tuple(self.chosen("ks", ks, ALWAYS))
        self.temperatures: tuple[float, ...] = tuple(self.chosen("temperatures", temperatures, ()))
        self.distance: Distance = self.chosen("distance", distance, "cosine")
        usual = "softmax" if self.distance == "cosine" else "inverse"
        self.weights: Weights = self.chosen("weights", weights, usual)

    def check(self, num_train: int) -> None:
        self._usable_neighbors(num_train)

    def evaluate(self, subject: Subject) -> Measurements:
        labels = subject.labels("train")
        k, beyond = self._usable_neighbors(len(labels))
        settings: dict[str, Any] = {
            "k": k,
            "temperature": self.temperature,
            "ks": (*ALWAYS, *self.ks),
            "temperatures": self.temperatures,
            "distance": self.distance,
            "weights": self.weights,
            "device": subject.device,
            "progress": subject.progress,
        }
        if labels.ndim == 2:
            return self._several(subject, settings, beyond)
        probe = knn_probe(*subject.probe_data(), **settings)
        classification = classified(subject, probe)
        details: dict[str, Any] = {"top1_by_k_and_temperature": probe.top1_by_k_and_temperature}
        if beyond:
            details["left_out"] = beyond
        at_k = {f"top1_k{size}": top1 for size, top1 in probe.top1_by_k.items()}
        return Measurements(measures=at_k, classification=classification, details=details)

    def _several(self, subject: Subject, settings: Mapping[str, Any], beyond: str) -> Measurements:
        probe = knn_probe_of_several(*subject.probe_data(), **settings)
        scores = label_metrics(subject, probe.fractions_NK)
        details: dict[str, Any] = {"map_by_k_and_temperature": probe.map_by_k_and_temperature}
        if beyond:
            details["left_out"] = beyond
        at_k = {
            f"map_k{size}": by_heat[self.temperature]
            for size, by_heat in probe.map_by_k_and_temperature.items()
        }
        return Measurements(measures=at_k, multi_label=scores, details=details | left_out(scores))

    def _usable_neighbors(self, bank: int) -> tuple[int, str]:
        """Neighbors that vote, and which numbers there are too few training images for.

        Raises:
            UserError: there are too few for a number that was requested explicitly.
        """
        for key, most in self._requested.items():
            if most is not None and most > bank:
                raise UserError(
                    f"{self.name}: {key}={most} neighbors of {bank} training images; "
                    f"use at most {bank}"
                )
        k = min(self.k, bank)
        beyond = sorted({size for size in (self.k, *ALWAYS, *self.ks) if size > bank})
        if not beyond:
            return k, ""
        shown = ", ".join(map(str, beyond))
        return k, f"k of {shown}: there are {bank} training images" + (
            f"; top1 is of k={k}" if k < self.k else ""
        )
