"""Curves over training as inline SVG; raw and smoothed.

By hand: fewer bytes than a library, and colors follow dark mode (see ``__init__.py``).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from ssdistill.report.charts.axes import (
    COLORS,
    dot,
    frame,
    left_margin,
    polyline,
    spanning,
    svg,
    value_label,
)
from ssdistill.report.charts.legend import Entry, legend

MOST_POINTS = 400
WIDTH = 400


@dataclass(frozen=True)
class Series:
    """One curve: ``(step, value)`` in order."""

    label: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Curves:
    """Curves that share a y axis."""

    title: str
    series: tuple[Series, ...]
    y_label: str = ""
    x_label: str = "step"
    log_y: bool = False
    smooth: bool = True


def curves_of(lines: Iterable[dict[str, Any]], stage: str) -> list[Curves]:
    """Charts of a stage's metrics.jsonl: losses, agreement, collapse, schedule."""
    lines = list(lines)
    names = list(dict.fromkeys(name for line in lines for name in line))
    charts = []
    for title, label, smooth, metric in CHARTS:
        matches = [
            Series(
                name.split("/", 1)[1],
                tuple((line["step"], line[name]) for line in lines if line.get(name) is not None),
            )
            for name in names
            if name == metric or (metric.endswith("/") and name.startswith(metric))
        ]
        # With one loss of weight 1 the total is the same curve: the first to come stays.
        series = {s.points: s for s in reversed(matches) if s.points}
        if series:
            distinct = tuple(reversed(series.values()))
            charts.append(Curves(f"{stage}: {title}", distinct, label, smooth=smooth))
    return charts


def label_free_side_by_side(lines: Mapping[str, Iterable[dict[str, Any]]]) -> list[Curves]:
    """One chart per label-free metric, with one curve per stage, by role."""
    kept = {role: list(of_role) for role, of_role in lines.items()}
    charts = []
    for title, label, metric in LABEL_FREE:
        points = {
            role: tuple((line["step"], line[metric]) for line in of_role if metric in line)
            for role, of_role in kept.items()
        }
        series = tuple(Series(role, drawn) for role, drawn in points.items() if drawn)
        if series:
            charts.append(Curves(title, series, label))
    return charts


LABEL_FREE = (
    ("Effective rank", "dimensions", "collapse/effective_rank"),
    ("Embedding std", "standard deviation", "collapse/std"),
    ("Alignment of two views", "squared distance", "collapse/alignment"),
    ("Uniformity", "", "collapse/uniformity"),
    ("Online probe", "top-1 (%)", "probe/online/top1"),
)
"""Title, y axis and metric of what is comparable between methods, whose losses are not."""

CHARTS = (
    ("losses", "loss", True, "loss/"),
    ("agreement with the teacher", "1 = same", True, "agree/"),
    ("embedding std", "standard deviation", True, "collapse/std"),
    ("effective rank", "dimensions", True, "collapse/effective_rank"),
    ("learning rate", "", False, "optim/lr"),
)
"""Title, y axis, whether noise is smoothed, and the metric or the room it shows."""


def smoothed(values: Sequence[float], window: float) -> list[float]:
    """Mean of the neighborhood, centered so that the curve does not lag behind the data.

    The neighborhood shrinks towards both ends: first and last value stay what they are.
    """
    half, sums = int(window / 2), [0.0, *accumulate(values)]
    last = len(values) - 1
    reach = [min(half, i, last - i) for i in range(len(values))]
    means = [(sums[i + r + 1] - sums[i - r]) / (2 * r + 1) for i, r in enumerate(reach)]
    # Differences of large sums lose small values; a mean never leaves the range of the values.
    low, high = min(values, default=0.0), max(values, default=0.0)
    return [min(max(mean, low), high) for mean in means]


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most ``MOST_POINTS`` points that keep the lowest and the highest of every stretch."""
    if len(points) <= MOST_POINTS:
        return list(points)
    stretch = math.ceil(len(points) / (MOST_POINTS // 2))
    kept = []
    for start in range(0, len(points), stretch):
        part = points[start : start + stretch]
        ends = {min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])}
        kept += sorted(ends)
    return kept


def line_chart(curves: Curves, width: float = WIDTH, height: float = 250) -> str:
    """Every curve raw (faint) and smoothed, with its last value in the legend."""
    drawable = _finite(curves.series)
    if not drawable:
        return svg(width, height, curves.title, "no finite value", "")
    entries = [
        Entry(s.label, f"var(--c{i % COLORS})", value_label(s.points[-1][1]))
        for i, s in enumerate(drawable)
    ]
    named, baseline = legend(entries, width)
    top = baseline + 12
    points = [p for s in drawable for p in s.points]
    log = curves.log_y and all(value > 0 for _, value in points)
    y = spanning([p[1] for p in points], height - 42, top + 24, log)
    x = spanning([p[0] for p in points], left_margin(y), width - 8, margin=0.0)
    parts = [named, frame(x, y, (curves.x_label, curves.y_label), width, top=top + 8)]
    for i, series in enumerate(drawable):
        window = len(series.points) / 20 if curves.smooth else 1
        soft = smoothed([v for _, v in series.points], window)
        even = list(zip([s for s, _ in series.points], soft, strict=True))
        for kind, line in (("raw", series.points), ("line", even)):
            drawn = [(x(a), y(b)) for a, b in thinned(line)]
            parts.append(polyline(drawn, i, kind))
        if len(series.points) == 1:
            parts.append(dot(drawn[0], i))
    described = "; ".join(
        f"{s.label} from {s.points[0][1]:.4g} to {s.points[-1][1]:.4g}" for s in drawable
    )
    return svg(width, height, curves.title, described, "".join(parts))


def _finite(series: Sequence[Series]) -> list[Series]:
    """Without the values of a training that diverged, which have no place on an axis."""
    finite = [
        Series(s.label, tuple(p for p in s.points if math.isfinite(p[1]))) for s in series
    ]  # fmt: skip
    return [s for s in finite if s.points]
