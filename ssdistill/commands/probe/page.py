"""Results of `ssdistill probe` as one HTML page with charts."""

import json
from functools import partial

from ssdistill.commands.probe.files import to_json
from ssdistill.commands.probe.tables import (
    classes_beside_table,
    classes_table,
    interval_words,
    label_free_table,
    measures_table,
    models_table,
    paired_table,
    quoted,
)
from ssdistill.evaluate.comparing.findings import Findings, Probed
from ssdistill.evaluate.intervals import interval_of
from ssdistill.label_free.projection import Method, project, turned
from ssdistill.record.provenance import provenance
from ssdistill.report.charts.comparisons import SizePoint, size_chart
from ssdistill.report.charts.confusion import confusion_svg
from ssdistill.report.charts.embedding_map import map_svg
from ssdistill.report.document import Headline, rendered
from ssdistill.report.tables.columns import protocol_words
from ssdistill.report.tables.models import scaled

MOST_DRAWN = 6
"""Models whose confusions and maps are drawn."""
MOST_HEADLINES = 6


def render(probed: Probed, method: Method = "pca") -> str:
    """Render the page as self-contained HTML."""
    names = ", ".join(model.name for model in probed.models)
    shown = probed.shown
    summary = (
        f"{shown.description}: {len(shown.train.images)} training and {len(shown.test.images)} "
        "test images. "
    )
    if probed.protocols:
        protocols = ", ".join(protocol_words(protocol.name) for protocol in probed.protocols)
        summary += f"Evaluated with {protocols}; hyper-parameters are chosen by training labels."
    else:
        summary += "No labels: evaluation skipped, label-free metrics shown."
    several = len(probed.models) > 1
    drawn = probed.models[:MOST_DRAWN]
    points = _accuracy_points(probed) if several else []
    return rendered(
        "probe.html",
        title=f"Probe of {names}" if len(names) < 80 else f"Probe of {len(probed.models)} models",
        summary=summary,
        notices=probed.notices,
        headline=_headlines(probed),
        results=models_table(probed) if several else measures_table(probed.models[0], probed),
        costs=[partial(size_chart, points, (), measure=quoted(probed)[0].header)] if points else [],
        paired=paired_table(probed),
        reference=probed.models[0].name,
        confusions=[chart for model in drawn if (chart := _confusion(model))],
        maps=_maps(probed, method),
        map_lede=_map_lede(probed, method),
        classes=classes_beside_table(probed) if several else classes_table(probed.models[0]),
        label_free=label_free_table(probed),
        provenance=provenance(),
        config=_request(probed),
    )


def _request(probed: Probed) -> str:
    """What was requested, as JSON: data, protocols and where each model came from."""
    content = json.loads(to_json(probed))
    request = {key: content[key] for key in ("data", "protocols", "margin")}
    request["models"] = {
        model["name"]: {"source": model["source"]}
        | {name: result["details"] for name, result in model["results"].items()}
        for model in content["models"]
    }
    return json.dumps(request, indent=2)


def _headlines(probed: Probed) -> list[Headline]:
    """One number per protocol for a single model, else one per model by the first protocol."""
    columns = quoted(probed)
    if not columns:
        return []
    if len(probed.models) == 1:
        pairs = [(probed.models[0], column, column.header) for column in columns]
    else:
        pairs = [(model, columns[0], model.name) for model in probed.models]
    headlines = []
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
        headlines.append(Headline(name, f"{value:.1f}", note))
    return headlines


def _accuracy_points(probed: Probed) -> list[SizePoint]:
    columns = quoted(probed)
    if not columns:
        return []
    metric, points = columns[0].metric, []
    for model in probed.models:
        size, value = model.metrics.get("compress/bytes"), model.metrics.get(metric)
        if size and value is not None:
            interval = interval_of(model.metrics, metric)
            error = (interval[1] - interval[0]) / 2 if interval else None
            points.append(SizePoint(model.name, size, value, error))
    return points if len(points) > 1 else []


def _confusion(model: Findings) -> partial[str] | None:
    for name, result in model.results.items():
        if classification := result.classification:
            title = f"{model.name}, {protocol_words(name)}"
            return partial(confusion_svg, classification.confusion_KK, classification.names, title)
    return None


def _maps(probed: Probed, method: Method) -> list[partial[str]]:
    """One embedding map per model, each rotated to match the first (Procrustes)."""
    class_N, names = probed.classes
    charts, first_N2 = [], None
    for model in probed.models[:MOST_DRAWN]:
        assert model.looked_at_ND is not None  # the embeddings are kept where there is a page
        points_N2, plane = project(model.looked_at_ND, method)
        first_N2 = points_N2 if first_N2 is None else first_N2
        placed_N2 = turned(points_N2, first_N2)
        charts.append(partial(map_svg, placed_N2, class_N, names, model.name, plane))
    return charts


def _map_lede(probed: Probed, method: Method) -> str:
    count = len(range(*probed.rows.indices(len(probed.shown.test.images))))
    how = {
        "pca": "the first two principal components of the unit-length embeddings",
        "umap": "neighborhoods are preserved, larger distances mean little",
    }
    return f"{count} test images in embedding space: {how[method]}."
