"""Protocol ``transfer``: the same encoder, probed on other data sets."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import numpy as np
from pydantic import BeforeValidator, Field
from torch import Tensor

from ssdistill.data.image_set import ImageSet
from ssdistill.data.opening import open_source, open_stores
from ssdistill.data.recipes_of_images import channels_of
from ssdistill.errors import UserError
from ssdistill.evaluate.classification import Classification, classify
from ssdistill.evaluate.intervals import binomial_error
from ssdistill.evaluate.probes.knn_probe import knn_probe
from ssdistill.evaluate.protocols import Measurements, Protocol
from ssdistill.evaluate.protocols.linear import linear_probe
from ssdistill.evaluate.subject import Subject
from ssdistill.settings import Settings
from ssdistill.settings.registry import SOURCES

if TYPE_CHECKING:
    from ssdistill.settings.kinds.sources import AnySettings as AnySource
else:
    AnySource = SOURCES.union

RUNS = Path("runs")
"""Where the command line keeps its runs, and with them its stores of images."""


def _kind_alone(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


Dataset = Annotated[AnySource, BeforeValidator(_kind_alone)]


@dataclass(frozen=True)
class _Opened:
    """A data set that is there and has labels."""

    name: str
    splits: dict[str, ImageSet]


class Transfer(Protocol):
    """The encoder as it is, probed on the training and test images of other data sets.

    Images are given at the encoder's own image size and normalized by the encoder itself,
    with the statistics it was trained with: those of the other data set are not looked at.
    Accuracy is the fraction of right answers, also where a data set's authors use the mean over
    classes (flowers102, pets), which is in the details as ``balanced_accuracy``.

    Decoded images are kept beside those of the subject: in the folder of its own store, else
    in ``data`` of the subject's folder, else in ``runs/data``.

    Args:
        datasets: as ``data`` of a config: a kind alone, or a kind and its settings. Each gives
            ``<name>_top1``, named by its kind or, for a file or folder, by its own name.
        protocol: which probe, with its default settings: ``linear`` or ``knn``.
    """

    kind = "transfer"
    reads_labels = False
    paper = "Kornblith et al., arXiv:1805.08974 (logistic regression on other data sets)"

    def __init__(
        self,
        *,
        datasets: Annotated[tuple[Dataset, ...], Field(min_length=1)],
        protocol: Literal["linear", "knn"] = "linear",
    ):
        if protocol not in ("linear", "knn"):
            raise UserError(f"transfer.protocol='{protocol}': must be linear or knn")
        self._settings = [_validated(entry) for entry in datasets]
        # Plain values: they are written down with the result.
        self.datasets = tuple(
            settings.model_dump(mode="json", exclude_defaults=True) | {"kind": settings.kind}
            for settings in self._settings
        )
        self.protocol = protocol

    def check_pixels(self, images: Any) -> None:
        """Check that the other data sets will have as many channels as the encoder takes."""
        count, _ = channels_of(images)
        for settings, name in zip(self._settings, names(self._settings), strict=True):
            chosen = getattr(settings, "channels", None)
            try:
                _check_channels(3 if chosen is None else len(chosen), count)
            except UserError as error:
                raise UserError(f"data set '{name}': {error}") from None

    def evaluate(self, subject: Subject) -> Measurements:
        # All of them are opened first: the last one missing must not cost hours.
        opened = [
            _open(settings, name, subject)
            for settings, name in zip(self._settings, names(self._settings), strict=True)
        ]
        measures: dict[str, float] = {}
        details: dict[str, Any] = {}
        for entry in opened:
            classification, chosen = self._probed(entry, subject)
            measures[f"{entry.name}_top1"] = classification.top1
            measures[f"{entry.name}_top1_stderr"] = binomial_error(
                classification.top1, len(classification.targets)
            )
            details[entry.name] = {
                "train_images": len(entry.splits["train"]),
                "test_images": len(entry.splits["test"]),
                "classes": len(classification.classes),
                "balanced_accuracy": classification.balanced_accuracy,
                **chosen,
            }
        top1s = [measures[f"{entry.name}_top1"] for entry in opened]
        return Measurements(measures | {"top1": sum(top1s) / len(top1s)}, details=details)

    def _probed(self, entry: _Opened, subject: Subject) -> tuple[Classification, dict[str, Any]]:
        data: list[Tensor | Any] = []
        for split in ("train", "test"):
            store = entry.splits[split]
            data += [subject.encode(store.images), store.labels]
        try:
            if self.protocol == "linear":
                probe = linear_probe(*data)
                chosen = {"strength": probe.strength}
            else:
                probe = knn_probe(*data)
                chosen = {"k": probe.k}
        except UserError as error:
            raise _named(entry.name, error) from None
        classification = classify(
            data[3], probabilities_NK=probe.probabilities_NK, classes=probe.classes
        )
        return classification, chosen


def names(datasets: "Sequence[AnySource]") -> list[str]:
    """One name for each, of letters, digits and ``_``; equal ones are numbered from 2."""
    names_in_use: list[str] = []
    for settings in datasets:
        path = getattr(settings, "path", None)
        stem = re.sub(r"\W+", "_", Path(path).stem, flags=re.ASCII).strip("_") if path else ""
        name, number = stem or settings.kind, 1
        while (unique := name if number == 1 else f"{name}_{number}") in names_in_use:
            number += 1
        names_in_use.append(unique)
    return names_in_use


def _validated(entry: Any) -> "AnySource":
    from ssdistill.settings.problems import validated  # it reads this module's schema

    if isinstance(entry, Settings):
        return cast("AnySource", entry)
    values = _kind_alone(entry)
    if not isinstance(values, dict):
        raise UserError(
            f"transfer.datasets: expected a kind, or a kind and its settings, got {entry!r}; "
            "write, for example, [cifar10]"
        )
    kind = values.get("kind", "")
    SOURCES[kind]  # an unknown kind is refused with the nearest one
    return cast("AnySource", validated(SOURCES.schema(kind), values, "transfer.datasets"))


def _open(settings: "AnySource", name: str, subject: Subject) -> _Opened:
    """The stores of a data set, made where they are not there.

    Raises:
        UserError: it is missing, unreadable or has no labels; the message begins with its name.
    """
    source = open_source(settings)
    size = settings.image_size or subject.image_size
    try:
        if not source.has_labels:
            raise UserError(
                f"{source.description} has no labels, which a probe requires; remove it"
            )
        splits = open_stores(source, settings, size, data_folder(subject))
        _check_channels(channels_of(splits["train"])[0], channels_of(subject.train)[0])
        for store in splits.values():
            if np.ndim(store.labels) == 2:  # read now, to report invalid labels early
                raise UserError(
                    "images may have several labels, but transfer requires one per image; evaluate "
                    "this data set on its own, with linear or knn"
                )
    except UserError as error:
        raise _named(name, error) from error
    return _Opened(name, splits)


def _check_channels(found: int, expected: int) -> None:
    if found != expected:
        raise UserError(
            f"its images have {found} channel{'s' if found > 1 else ''}, the encoder takes "
            f"{expected}; set its channels, or remove it"
        )


def data_folder(subject: Subject) -> Path:
    """Folder of the other data sets' images: that of the subject's own, if possible."""
    if isinstance(subject.train, ImageSet):
        return subject.train.folder.parent
    return (Path(subject.folder) if subject.folder else RUNS) / "data"


def _named(name: str, error: UserError) -> UserError:
    return UserError(f"transfer: data set '{name}': {error}")
