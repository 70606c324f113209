"""report.html: one file that needs no network, no script and no explanation."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from html import escape
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
from ssdistill.report.charts.confusion import CONFUSION_LEDE, CONFUSIONS
from ssdistill.report.charts.grids import Neighbours, ViewGrid, image_grid, png_uri
from ssdistill.report.charts.plots import Curves, line_chart
from ssdistill.report.document import (
    Headline,
    caption,
    card,
    document,
    drawn,
    origin,
    section,
    side_by_side,
)
from ssdistill.report.tables.models import Table

PAGE_FILE = "report.html"
SEARCH_LEDE = (
    "What is lost at each cost, measured without labels: by the plan that a search chose layer by "
    "layer, and by the best that treats every layer alike."
)


@dataclass(frozen=True)
class PageData:
    """What the page shows; whatever is left empty is left out.

    Attributes:
        title, summary: plain text; the summary is one honest paragraph.
        notices: what a reader must know before believing the numbers.
        headline: two to six big numbers.
        results, protocols, paired, steps, rankings, claims: tables (see ``all_tables`` and
            ``verdict.verdict_table``).
        fronts: what searches found (see ``front_chart.front_svg``).
        sizes: models by bytes and accuracy; latencies: by time and accuracy; chain: labels of
            both that were made one from the other, in order.
        scores: models by accuracy, with spread.
        curves: one chart each (see ``plots.curves_of``).
        confusions: of models, drawn at a width (see ``confusion_chart.confusion_svg``).
        views, neighbours: pictures.
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
    curves: Sequence[Curves] = ()
    confusions: Sequence[Callable[[float], str]] = ()
    views: ViewGrid | None = None
    neighbours: Neighbours | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    config: str = ""


def write_page(folder: Path | str, page: PageData) -> Path:
    """Write ``report.html`` into an existing folder, as a whole or not at all."""
    path = Path(folder) / PAGE_FILE
    write_atomically(path, render_page(page))
    return path


def render_page(page: PageData) -> str:
    """The page as text: HTML with its style, plots and pictures inside."""
    footer = "Made by ssdistill from the records of this run; no number was typed by hand."
    return document(
        page.title,
        page.summary,
        _sections(page),
        notices=page.notices,
        headline=page.headline,
        footer=footer,
    )


def _sections(page: PageData) -> Iterator[str]:
    if page.results:
        yield section("Results", page.results.to_html())
    if page.protocols:
        yield section("Protocol by protocol", page.protocols.to_html())
    if page.rankings:
        yield section("Gauges and probes", page.rankings.to_html())
    if page.sizes or page.latencies or page.scores:
        yield section("Accuracy", _accuracy(page))
    if page.paired:
        yield section("On the same test images", page.paired.to_html())
    if page.confusions:
        yield section(CONFUSIONS, side_by_side(page.confusions), CONFUSION_LEDE)
    if page.steps:
        yield section("Compression, step by step", page.steps.to_html())
    if page.fronts:
        charts = "".join(card(front) for front in page.fronts)
        yield section("Search", f'<div class="grid">{charts}</div>', SEARCH_LEDE)
    if page.claims:
        yield section("Expected and obtained", page.claims.to_html())
    if page.curves:
        lede = "Faint: as logged. Strong: smoothed. The legend gives the last value."
        charts = "".join(card(line_chart(curves)) for curves in page.curves)
        yield section("Training", f'<div class="grid">{charts}</div>', lede)
    if page.views:
        yield section("What the networks see", _views(page.views))
    if page.neighbours:
        yield section("Nearest neighbours", _neighbours(page.neighbours))
    if page.provenance or page.config:
        yield section("Where this comes from", origin(page.provenance, page.config))


def _accuracy(page: PageData) -> str:
    """Beside the scores what accuracy costs, in bytes and in time."""
    costs = []
    if page.sizes:
        costs.append(partial(size_chart, page.sizes, page.chain))
    if page.latencies:
        costs.append(partial(latency_chart, page.latencies, page.chain))
    scores = [partial(score_chart, page.scores)] if page.scores else []
    if len(costs) > 1:
        return side_by_side(costs, 330) + (drawn(scores[0], 1150) if scores else "")
    cards = [drawn(chart, 700 if scores else 1150, 360) for chart in costs]
    cards += [drawn(chart, 450 if costs else 1150) for chart in scores]
    inner = "".join(f"<div>{card}</div>" for card in cards)
    return f'<div class="pair">{inner}</div>' if len(cards) > 1 else inner


def _views(grid: ViewGrid) -> str:
    alt = f"{len(grid.rows)} views in rows; columns: {', '.join(grid.columns)}"
    content = _heads(grid.columns) + _picture(image_grid(grid.rows), alt)
    return card(content + caption(escape(grid.caption)), "views")


def _neighbours(found: Neighbours) -> str:
    unframed = [[False] * (1 + len(row)) for row in found.shared]
    framed = [[False, *row] for row in found.shared]
    shared, asked = sum(map(sum, found.shared)), sum(map(len, found.shared))
    blocks = []
    for name, pictures, frames in (
        ("Teacher", found.teacher, unframed),
        ("Student", found.student, framed),
    ):
        rows = [[query, *row] for query, row in zip(found.queries, pictures, strict=True)]
        heads = ("query", *(str(i + 1) for i in range(len(pictures[0]))))
        alt = f"{len(rows)} queries, each with its {len(heads) - 1} nearest by the {name.lower()}"
        image = _picture(image_grid(rows, frames), alt)
        blocks.append(card(f"<h3>{name}</h3>{_heads(heads)}{image}"))
    counted = f"the teacher found it too ({shared} of {asked} shown). {found.caption}"
    under = f'<span class="key"></span>{escape(counted.strip())}'
    return f'<figure><div class="neighbours">{"".join(blocks)}</div>{caption(under)}</figure>'


def _heads(names: Sequence[str]) -> str:
    spans = "".join(f"<span>{escape(name)}</span>" for name in names)
    return f'<div class="heads" style="--n:{len(names)}">{spans}</div>'


def _picture(image_HWC: Any, alt: str) -> str:
    height, width = image_HWC.shape[:2]
    return (
        f'<img class="pictures" alt="{escape(alt, quote=True)}" width="{width}" '
        f'height="{height}" src="{png_uri(image_HWC)}">'
    )
