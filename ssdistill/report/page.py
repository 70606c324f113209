"""report.html: one self-contained file without scripts or network access."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ssdistill.files import write_atomically
from ssdistill.report.charts.comparisons import (
    LatencyPoint,
    Score,
    SizePoint,
    latency_chart,
    score_chart,
    size_chart,
)
from ssdistill.report.charts.grids import Neighbors, ViewGrid
from ssdistill.report.charts.plots import Curves
from ssdistill.report.document import Headline, rendered
from ssdistill.report.tables.models import Table

PAGE_FILE = "report.html"


@dataclass(frozen=True)
class PageData:
    """Contents of the page; empty fields are omitted.

    Attributes:
        title, summary: plain text; the summary is one paragraph.
        notices: what a reader must know to interpret the numbers.
        headline: two to six big numbers.
        results, protocols, paired, steps, rankings, claims: tables (see ``all_tables`` and
            ``verdict.verdict_table``).
        fronts: what searches found (see ``charts.pareto.front_svg``).
        sizes: models by bytes and accuracy; latencies: by time and accuracy; chain: labels of
            both that were made one from the other, in order.
        scores: models by accuracy, with spread; measure: what accuracy is in the charts.
        curves: one chart each (see ``charts.plots.curves_of``).
        confusions: of models, drawn at a width (see ``charts.confusion.confusion_svg``).
        views, neighbors: images.
        provenance: nested facts; config: the resolved configuration as text.
    """

    title: str
    summary: str
    notices: Sequence[str] = ()
    headline: Sequence[Headline] = ()
    results: Table | None = None
    protocols: Table | None = None
    steps: Table | None = None
    paired: Table | None = None
    rankings: Table | None = None
    claims: Table | None = None
    fronts: Sequence[str] = ()
    sizes: Sequence[SizePoint] = ()
    latencies: Sequence[LatencyPoint] = ()
    chain: Sequence[str] = ()
    scores: Sequence[Score] = ()
    measure: str = "Linear top-1 (%)"
    curves: Sequence[Curves] = ()
    confusions: Sequence[Callable[[float], str]] = ()
    views: ViewGrid | None = None
    neighbors: Neighbors | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    config: str = ""


def write_page(folder: Path | str, page: PageData) -> Path:
    """Write ``report.html`` into an existing folder, as a whole or not at all."""
    path = Path(folder) / PAGE_FILE
    write_atomically(path, render_page(page))
    return path


def render_page(page: PageData) -> str:
    """The page as text: HTML with its style, plots and images inside."""
    costs: list[partial[str]] = []
    measure = page.measure[:1].lower() + page.measure[1:]
    if page.sizes:
        costs.append(partial(size_chart, page.sizes, page.chain, measure=measure))
    if page.latencies:
        costs.append(partial(latency_chart, page.latencies, page.chain, measure=measure))
    score_charts = []
    if page.scores:
        score_charts.append(partial(score_chart, page.scores, title=page.measure))
    return rendered("report.html", **vars(page), costs=costs, score_charts=score_charts)
