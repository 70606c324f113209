"""Results of `ssdistill probe` as tables."""

import math
from typing import Any

from ssdistill.evaluate.comparing.findings import Findings, Probed
from ssdistill.evaluate.intervals import interval_of
from ssdistill.evaluate.paired import Paired
from ssdistill.report.tables.columns import MEASURES, PROBE, Column, protocol_words
from ssdistill.report.tables.models import MISSING, scaled
from ssdistill.report.tables.paired import p_value_text
from ssdistill.report.tables.table import Table
from ssdistill.settings import short_size

FOLDED = ("_low", "_high", "_stderr")
"""Suffixes of measures that are shown as the interval of another measure."""
MOST_CLASSES, WORST = 20, 10
"""Show all classes up to this number; beyond it, only this many of the worst."""
WIDE = 4
"""Give each protocol a column of its own up to this number of protocols."""
LABEL_FREE = (
    ("collapse/std", "std", 3),
    ("collapse/effective_rank", "effective rank", 1),
    ("collapse/uniformity", "uniformity", 2),
    ("agree/cka", "CKA", 3),
    ("agree/mapped_cosine", "mapped cosine", 3),
    ("agree/knn_overlap", "neighbors shared", 3),
)
"""Metric, heading and decimals of what is measured without labels."""


def tables(probed: Probed) -> list[Table]:
    """All tables of a probe, in reading order."""
    several = len(probed.models) > 1
    candidates = [
        models_table(probed) if several else measures_table(probed.models[0], probed),
        paired_table(probed) if several else classes_table(probed.models[0]),
        label_free_table(probed),
    ]
    return [table for table in candidates if table is not None]


def measures_table(model: Findings, probed: Probed) -> Table | None:
    """Every measure of every protocol for one model; the one to quote comes first."""
    rows = []
    for name, result in model.results.items():
        shown = [m for m in measures_of(result.metrics) if not m.endswith(FOLDED)]
        for number, measure in enumerate(shown):
            metric = f"{PROBE}{name}/{measure}"
            cells = (f"{model.metrics[metric]:.2f}", interval_words(model.metrics, metric))
            rows.append((protocol_words(name) if number == 0 else "", measure, *cells))
    if not rows:
        return None
    return Table(
        ("protocol", "measure", "value", "95 % interval"),
        tuple(rows),
        f"{_test_words(probed)}; accuracies and fractions in percent.",
        model.name,
        (False, False, True, True),
        keys=2,
    )


def classes_table(model: Findings) -> Table | None:
    """Precision, recall and F1 of every class, or of the worst; by the first protocol.

    For several labels per image, also the average precision.
    """
    name, by_class = _by_class(model)
    if name is None:
        return None
    several = "average_precision" in by_class[0]
    worst, caption = _worst_classes(by_class)
    measures = ("average_precision",) * several + ("precision", "recall", "f1")
    rows = tuple(
        (row["name"], str(row["images"]), *(_number(row[m], 1) for m in measures)) for row in worst
    )
    header = ("class", "images", *("AP",) * several, "precision", "recall", "F1")
    return Table(header, rows, f"{caption}By {protocol_words(name)}, in percent.", "Classes")


def classes_beside_table(probed: Probed) -> Table | None:
    """F1 of every class, or of the first model's worst, by model; by the first protocol.

    For several labels per image, the average precision.
    """
    name, by_class = _by_class(probed.models[0])
    if name is None:
        return None
    worst, caption = _worst_classes(by_class)
    models = [model for model in probed.models if _by_class(model)[0] == name]
    measure, words = _compared_by(by_class)
    of_models = [{row["class"]: row[measure] for row in _by_class(model)[1]} for model in models]
    rows = tuple(
        (row["name"], str(row["images"]), *(_number(f.get(row["class"]), 1) for f in of_models))
        for row in worst
    )
    header = ("class", "images", *(model.name for model in models))
    caption += f"{words} by {protocol_words(name)}, in percent."
    return Table(header, rows, caption, "Classes")


def _by_class(model: Findings) -> tuple[str | None, list[dict[str, Any]]]:
    """The first protocol that answers image by image, and what it says of each class."""
    for name, result in model.results.items():
        if answers := result.classification or result.multi_label:
            return name, answers.by_class()
    return None, []


def _compared_by(by_class: list[dict[str, Any]]) -> tuple[str, str]:
    """What classes are compared by, and the words for it."""
    if "average_precision" in by_class[0]:
        return "average_precision", "Average precision"
    return "f1", "F1"


def _worst_classes(by_class: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], str]:
    """The classes that are shown, and a word where these are not all."""
    if len(by_class) <= MOST_CLASSES:
        return by_class, ""
    measure, words = _compared_by(by_class)
    scored = [row for row in by_class if row[measure] is not None]
    words = words if words == "F1" else words.lower()
    caption = f"The {WORST} of {len(by_class)} classes with the smallest {words}. "
    return sorted(scored, key=lambda row: row[measure])[:WORST], caption


def models_table(probed: Probed) -> Table:
    """What each model costs, and each protocol's number with its interval.

    One row per model; one column per model if the protocols do not fit in a terminal's width.
    """
    columns = quoted(probed)
    body = []
    for model in probed.models:
        cells = [
            _scaled(model.metrics.get("compress/bytes"), "bytes"),
            _scaled(model.metrics.get("compress/params"), "count"),
            short_size(model.image_size),
        ]
        for column in columns:
            value = model.metrics.get(column.metric)
            text = interval_words(model.metrics, column.metric)
            around = f" ({text})" if text else ""
            cells.append(MISSING if value is None else f"{value:.{column.decimals}f}{around}")
        body.append((model.name, *cells))
    header = ("model", "size", "parameters", "pixels", *(c.header for c in columns))
    if len(columns) > WIDE:
        header, *body = zip(header, *body, strict=True)
    caption = f"{_test_words(probed)}; in brackets the 95 % interval."
    return Table(header, tuple(body), caption if columns else _test_words(probed), "Models")


def paired_table(probed: Probed) -> Table | None:
    """Every model against the first, by every protocol that answers image by image."""
    if not probed.comparisons:
        return None
    rows = [
        (
            one.model,
            protocol_words(one.protocol),
            f"{one.paired.difference:+.2f}",
            f"{one.paired.low:+.2f} to {one.paired.high:+.2f}",
            p_value_text(one.paired.p_value),
            verdict_words(one.paired),
        )
        for one in probed.comparisons
    ]
    reference, margin = probed.models[0].name, probed.margin
    caption = (
        f"Both models classify the same {len(probed.shown.test.images)} test images. Difference in "
        f"points of accuracy; p: McNemar's exact test. Equivalent: the 90 % interval lies within "
        f"± {margin:g} points."
    )
    header = ("model", "protocol", "difference", "95 % interval", "McNemar p", "verdict")
    numeric = (False, False, True, True, True, False)
    return Table(header, tuple(rows), caption, f"Against {reference}", numeric)


def label_free_table(probed: Probed) -> Table:
    """What is measured without labels, and the agreement with the first model."""
    shown = [g for g in LABEL_FREE if any(g[0] in model.metrics for model in probed.models)]
    rows = tuple(
        (model.name, *(_number(model.metrics.get(metric), digits) for metric, _, digits in shown))
        for model in probed.models
    )
    images = len(range(*probed.rows.indices(len(probed.shown.test.images))))
    caption = f"On {images} test images, without labels."
    if len(probed.models) > 1:
        caption += (
            f" CKA, mapped cosine, shared neighbors (of 10): agreement with "
            f"{probed.models[0].name}, 1 is complete."
        )
    header = ("model", *(heading for _, heading, _ in shown))
    return Table(header, rows, caption, "Label-free metrics")


def quoted(probed: Probed) -> list[Column]:
    """The number to quote of every protocol: one that all tables show, else its first."""
    columns: dict[str, Column] = {}
    for model in probed.models:
        for name, result in model.results.items():
            measures = measures_of(result.metrics)
            if name in columns or not measures:
                continue
            measure = next((m for m in MEASURES if m in measures), measures[0])
            heading = f"{protocol_words(name)} {MEASURES.get(measure, measure)}"
            columns[name] = Column(f"{PROBE}{name}/{measure}", heading)
    return list(columns.values())


def measures_of(metrics: dict[str, float]) -> list[str]:
    """Short names of a result's metrics, in their order."""
    return [name.split("/", 2)[2] for name in metrics]


def interval_words(metrics: dict[str, float], metric: str) -> str:
    """``83.2 to 89.4``; nothing where there is no interval."""
    interval = interval_of(metrics, metric)
    return f"{interval[0]:.1f} to {interval[1]:.1f}" if interval else ""


def verdict_words(paired: Paired) -> str:
    """``better``, ``worse``, ``equivalent within 1`` or ``undecided``."""
    margin = f" within {paired.margin:g}" if paired.verdict == "equivalent" else ""
    return f"{paired.verdict}{margin}"


def _test_words(probed: Probed) -> str:
    shown = probed.shown
    train, test = len(shown.train.images), len(shown.test.images)
    return f"{shown.description}: {train} training, {test} test images"


def _number(value: float | None, digits: int) -> str:
    return MISSING if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _scaled(value: float | None, scale: str) -> str:
    return MISSING if value is None else scaled(value, scale)
