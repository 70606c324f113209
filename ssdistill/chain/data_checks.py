"""Check images and labels before anything is trained."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ssdistill.data.image_set import ImageSet
from ssdistill.data.splits import Source, Unlabeled
from ssdistill.data.undecoded import undecoded_of
from ssdistill.errors import UserError
from ssdistill.evaluate.labels import excluded_classes, has_several, look_at_labels
from ssdistill.experiment.schema import Experiment
from ssdistill.label_free.agreement import CKA_AT_LEAST

TRAINABLE = 2
"""Smallest number of images for training."""
MEASURED_AT_LEAST = 2
"""Smallest number of images for label-free metrics of one encoder (two: ``CKA_AT_LEAST``)."""
FEW_IMAGES = 12
"""Training images below which compression gets augmented views beside them."""
SAMPLE = 64
"""Size of the sample compared first; all images are compared if these are alike."""
PIECE_BYTES = 64 << 20
"""Pixels that are compared at a time."""


@dataclass(frozen=True)
class Findings:
    """Results of the data checks.

    Attributes:
        source: where they come from, without labels where those cannot serve a probe.
        classes: one line about the classes; None where no label is read.
        warnings: one line each, with what to do.
    """

    source: Source
    classes: str | None
    warnings: list[str]


def check_data(
    experiment: Experiment, source: Source, stores: dict[str, ImageSet], *, labels: bool = True
) -> Findings:
    """Check images and, if labels will be used, labels.

    Of images that are not decoded yet only their number is checked, and no label is read.

    Args:
        labels: whether this process may read them.

    Raises:
        UserError: images that nothing can be learned from, or labels that no probe can read.
    """
    train, test = stores["train"], stores["test"]
    if len(train) < TRAINABLE:
        raise UserError(
            f"data: {len(train)} training image, but training requires at least 2; "
            "add images, or lower data.test_fraction if some are held out"
        )
    _refuse_selection(train, experiment)
    decoded = not undecoded_of(stores.values())
    if decoded:
        _refuse_constant(train, experiment)
    reads_labels = experiment.evaluate is not None
    warnings = [*source.warnings(reads_labels), *_missing_test(experiment, source)]
    warnings += (_constant_warnings(train, test) if decoded else []) + _few(source, test)
    warnings += _few_to_compress(experiment, train)
    # Only names that are known without reading a label.
    names = train.class_names if source.has_labels else None
    of_classes = source.warnings(True) != source.warnings(False)
    if names is not None and len(names) < 2 and of_classes:
        source = Unlabeled(source)
    findings = Findings(source, None, warnings)
    if experiment.evaluate is not None and source.has_labels:
        experiment.evaluate.check_images(len(train))
        experiment.evaluate.check_pixels(test)
        if decoded and labels:
            classes = look_at_labels(train, test)
            if has_several(train):
                lines = experiment.evaluate.left_out_of_several(), excluded_classes(train, test)
                warnings += filter(None, lines)
            return replace(findings, classes=classes)
    return findings


def _refuse_selection(train: ImageSet, experiment: Experiment) -> None:
    rows = {"distill": experiment.distill}
    rows |= {f"compare.{name}": row for name, row in experiment.compare.items()}
    for key, settings in rows.items():
        if getattr(settings, "select", None) == "agreement" and len(train) < CKA_AT_LEAST:
            raise UserError(
                f"{key}.select=agreement requires {CKA_AT_LEAST} training images, there are "
                f"{len(train)}; set {key}.select=last, or add images"
            )


def _refuse_constant(train: ImageSet, experiment: Experiment) -> None:
    first = np.asarray(train.images[0])
    if not holds_everywhere(train, lambda images_NHWC: images_NHWC == first):
        return
    values = np.unique(first)
    window = f", or data.window={experiment.data.window}" if train.window else ""
    if len(values) == 1:
        raise UserError(
            f"data: every pixel of the {len(train)} training images has the value {values[0]} "
            f"(of 0 to 255), so there is nothing to learn; check the files{window}"
        )
    raise UserError(
        f"data: the {len(train)} training images are identical, so there is nothing to tell "
        f"apart; check the files{window}"
    )


def _constant_warnings(train: ImageSet, test: ImageSet) -> list[str]:
    warnings = []
    if holds_everywhere(train, lambda images_NHWC: images_NHWC == images_NHWC[:, :1, :1]):
        warnings.append(
            "each training image has a single color, so all its crops look the same; "
            "check the files"
        )
    first = np.asarray(test.images[0])
    if len(test) > 1 and holds_everywhere(test, lambda images_NHWC: images_NHWC == first):
        warnings.append(
            f"the {len(test)} test images are identical, so their metrics are "
            "meaningless; check the files"
        )
    return warnings


def holds_everywhere(store: ImageSet, holds: Callable[[np.ndarray], np.ndarray]) -> bool:
    """Whether a property holds for every pixel; a sample is checked first."""
    images_NHWC = store.images
    sample = images_NHWC[:: -(-len(images_NHWC) // SAMPLE)]
    piece = max(1, PIECE_BYTES // max(1, sample[0].nbytes))
    return bool(holds(sample).all()) and all(
        bool(holds(images_NHWC[start : start + piece]).all())
        for start in range(0, len(images_NHWC), piece)
    )


def _missing_test(experiment: Experiment, source: Source) -> list[str]:
    if source.has_test:
        return []
    probes = "; no probe is run" if experiment.evaluate is not None else ""
    return [
        "there are no test images, so label-free metrics use the training images"
        f"{probes}; to get test images, raise data.test_fraction or add a folder named test"
    ]


def _few_to_compress(experiment: Experiment, train: ImageSet) -> list[str]:
    if len(train) >= FEW_IMAGES or experiment.compressed is None:
        return []
    return [
        f"{_count_of_images(len(train), 'training')}: too few for compress, so its steps also use "
        "augmented views of them; add images"
    ]


def _few(source: Source, test: ImageSet) -> list[str]:
    if len(test) >= CKA_AT_LEAST:
        return []
    metrics = "agree/* (requires 4)"
    if len(test) < MEASURED_AT_LEAST:
        metrics = "collapse/* (requires 2) and agree/* (requires 4)"
    remedy = "raise data.test_fraction, or add images" if source.has_test else "add images"
    return [
        f"{_count_of_images(len(test), 'test')}: too few for {metrics}, which are skipped; {remedy}"
    ]


def _count_of_images(count: int, split: str) -> str:
    return f"{count} {split} image{'s' if count != 1 else ''}"
