"""What `ssdistill probe` found, as one page with pictures."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from ssdistill.commands.probe.files import to_json
from ssdistill.commands.probe.findings import Findings, Probed
from ssdistill.commands.probe.projection import Method, project, turned
from ssdistill.commands.probe.tables import (
    classes_beside_table,
    classes_table,
    gauges_table,
    interval_of,
    interval_words,
    measures_table,
    models_table,
    paired_table,
    quoted,
)
from ssdistill.record.provenance import provenance
from ssdistill.report.charts.comparisons import SizePoint, size_chart
from ssdistill.report.charts.confusion import CONFUSION_LEDE, CONFUSIONS, confusion_svg
from ssdistill.report.charts.embedding_map import map_svg
from ssdistill.report.document import Headline, document, origin, section, side_by_side
from ssdistill.report.tables.columns import protocol_words
from ssdistill.report.tables.models import scaled

MOST_DRAWN = 6
"""Models whose confusions and maps are drawn."""
MOST_HEADLINES = 6


def render(probed: Probed, method: Method = "pca") -> str:
    """The page as text: HTML with its style and pictures inside."""
    names = ", ".join(model.name for model in probed.models)
    shown = probed.shown
    summary = (
        f"{shown.description}: {len(shown.train.images)} training and {len(shown.test.images)} "
        "test images. "
    )
    if probed.protocols:
        asked = ", ".join(protocol_words(protocol.name) for protocol in probed.protocols)
        summary += (
            f"Judged by {asked}: settings are chosen on training labels, never on the test's."
        )
    else:
        summary += "Without labels, encoders are looked at by gauges that need none."
    return document(
        f"Probe of {names}" if len(names) < 80 else f"Probe of {len(probed.models)} models",
        summary,
        _sections(probed, method),
        notices=probed.notices,
        headline=_headlines(probed),
        kicker="ssdistill probe",
        footer="Made by ssdistill probe; no number was typed by hand.",
    )


def _sections(probed: Probed, method: Method) -> Iterator[str]:
    several = len(probed.models) > 1
    main = models_table(probed) if several else measures_table(probed.models[0], probed)
    if main:
        yield section("Results", main.to_html())
    if several and (points := _sized(probed)):
        chart = partial(size_chart, points, (), measure=quoted(probed)[0].header)
        yield section("Accuracy against size", side_by_side([chart]))
    if paired := paired_table(probed):
        lede = f"Every model against {probed.models[0].name}, the first that was given."
        yield section("On the same test images", paired.to_html(), lede)
    yield from _pictures(probed, method)
    if classes := classes_beside_table(probed) if several else classes_table(probed.models[0]):
        yield section("Classes", classes.to_html())
    yield section("Without labels", gauges_table(probed).to_html())
    whole = json.loads(to_json(probed))
    asked = {key: whole[key] for key in ("data", "protocols", "margin")}
    asked["models"] = {
        model["name"]: {"source": model["source"]}
        | {name: result["details"] for name, result in model["results"].items()}
        for model in whole["models"]
    }
    config = json.dumps(asked, indent=2)
    yield section("Where this comes from", origin(provenance(), config))


def _pictures(probed: Probed, method: Method) -> Iterator[str]:
    """Confusions and maps, of one model beside each other."""
    models = probed.models[:MOST_DRAWN]
    confusions = [chart for model in models if (chart := _confusion(model))]
    maps = _maps(probed, method)
    lie = _map_lede(probed, method)
    if len(confusions) == len(maps) == 1:
        both = side_by_side([*confusions, *maps])
        yield section(CONFUSIONS, both, f"{CONFUSION_LEDE} The map: {lie}")
        return
    if confusions:
        yield section(CONFUSIONS, side_by_side(confusions), CONFUSION_LEDE)
    yield section("How the test images lie", side_by_side(maps), lie[0].upper() + lie[1:])


def _headlines(probed: Probed) -> list[Headline]:
    """Of one model each protocol's number, of several each model's by the first protocol."""
    columns = quoted(probed)
    if not columns:
        return []
    if len(probed.models) == 1:
        pairs = [(probed.models[0], column, column.header) for column in columns]
    else:
        pairs = [(model, columns[0], model.name) for model in probed.models]
    made = []
    for model, column, name in pairs[:MOST_HEADLINES]:
        value = model.metrics.get(column.metric)
        if value is None:
            continue
        words = interval_words(model.metrics, column.metric)
        size = model.metrics.get("compress/bytes")
        if len(probed.models) == 1:
            note = f"95 %: {words}" if words else ""
        else:
            note = column.header + (f", {scaled(size, 'bytes')}" if size else "")
        made.append(Headline(name, f"{value:.1f}", note))
    return made


def _sized(probed: Probed) -> list[SizePoint]:
    columns = quoted(probed)
    if not columns:
        return []
    metric, points = columns[0].metric, []
    for model in probed.models:
        size, value = model.metrics.get("compress/bytes"), model.metrics.get(metric)
        if size and value is not None:
            found = interval_of(model.metrics, metric)
            error = (found[1] - found[0]) / 2 if found else None
            points.append(SizePoint(model.name, size, value, error))
    return points if len(points) > 1 else []


def _confusion(model: Findings) -> partial[str] | None:
    for name, result in model.results.items():
        if found := result.classification:
            title = f"{model.name}, {protocol_words(name)}"
            return partial(confusion_svg, found.confusion_KK, found.names, title)
    return None


def _maps(probed: Probed, method: Method) -> list[Callable[[float], str]]:
    """The same images as each model sees them, turned to lie as they do for the first."""
    labels, names = probed.labels_N, ()
    if labels is not None:
        classes, labels = np.unique(labels, return_inverse=True)
        given = getattr(probed.shown.test, "class_names", None)
        known = given is not None and int(classes.max()) < len(given)
        names = [given[k] if known else str(k) for k in classes.tolist()]
    charts, first_N2 = [], None
    for model in probed.models[:MOST_DRAWN]:
        points_N2, plane = project(model.looked_at_ND, method)
        first_N2 = points_N2 if first_N2 is None else first_N2
        placed_N2 = turned(points_N2, first_N2)
        charts.append(_Map(placed_N2, labels, tuple(names), model.name, plane).draw)
    return charts


@dataclass(frozen=True)
class _Map:
    points_N2: np.ndarray
    labels_N: np.ndarray | None
    names: tuple[str, ...]
    title: str
    plane: str

    def draw(self, width: float) -> str:
        return map_svg(self.points_N2, self.labels_N, self.names, self.title, self.plane, width)


def _map_lede(probed: Probed, method: Method) -> str:
    count = len(range(*probed.rows.indices(len(probed.shown.test.images))))
    how = {
        "pca": "the two directions in which embeddings of unit length differ most",
        "umap": "neighbours stay neighbours, distances beyond that mean little",
    }
    return f"{count} test images as the encoder sees them: {how[method]}."
