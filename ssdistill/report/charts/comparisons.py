"""Models beside each other: accuracy against size and time, scores with their spread, as SVG.

By hand: names do not cover each other and show where one points (figures in ``__init__.py``).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ssdistill.report.charts.axes import (
    Scale,
    bytes_label,
    dot,
    frame,
    labels_apart,
    left_margin,
    nice_ticks,
    polyline,
    spanning,
    svg,
    tick_labels,
)
from ssdistill.report.charts.lettering import name, pointed_at, text, text_width
from ssdistill.report.charts.placing import around, boxes_along, named

WIDTH = 400
MEASURE = "linear top-1 (%)"
"""Default label of accuracy."""
ALL_NAMED = 12
"""Points up to which each has its name; of more, those have it whose name covers nothing."""


@dataclass(frozen=True)
class CostPoint:
    """A model by what it costs and its accuracy in percent, with the spread if known."""

    label: str
    cost: float
    accuracy: float
    error: float | None = None


class SizePoint(CostPoint):
    """Its cost is its size in bytes."""


class LatencyPoint(CostPoint):
    """Its cost is the time for one input in ms."""


@dataclass(frozen=True)
class Score:
    """A model's number: mean, spread, and every seed's own value."""

    label: str
    value: float
    error: float | None = None
    samples: tuple[float, ...] = ()


def size_chart(
    points: Sequence[SizePoint],
    chain: Sequence[str] = (),
    width: float = WIDTH,
    height: float = 300,
    title: str = "Accuracy against size",
    measure: str = MEASURE,
) -> str:
    """Accuracy over bytes (logarithmic); ``chain`` names the points joined by a line, in order."""
    axes = ("size on disk", measure)
    return _cost_chart(points, chain, (width, height), title, axes, bytes_label)


def latency_chart(
    points: Sequence[LatencyPoint],
    chain: Sequence[str] = (),
    width: float = WIDTH,
    height: float = 300,
    title: str = "Accuracy against latency",
    measure: str = MEASURE,
) -> str:
    """Accuracy over ms (logarithmic); ``chain`` as for :func:`size_chart`."""
    axes = ("time for one image", measure)
    return _cost_chart(points, chain, (width, height), title, axes, _ms_label)


def _ms_label(value: float) -> str:
    return f"{value:.3g} ms"


def _cost_chart(
    points: Sequence[CostPoint],
    chain: Sequence[str],
    size: tuple[float, float],
    title: str,
    axes: tuple[str, str],
    shown: Callable[[float], str],
) -> str:
    width, height = size
    values = [p.accuracy + s * (p.error or 0) for p in points for s in (-1, 1)]
    y = spanning(values, height - 42, 48, margin=0.12)
    x = spanning([p.cost for p in points], left_margin(y), width - 14, log=True, margin=0.12)
    parts = [frame(x, y, axes, width, shown, top=34)]
    at = {p.label: (x(p.cost), y(p.accuracy)) for p in points}
    steps = [at[label] for label in chain if label in at]
    if len(steps) > 1:
        parts.append(polyline(steps, 0))
    occupied = [around(place, 6, 6) for place in at.values()] + boxes_along(steps)
    for point in points:
        here, on_line = at[point.label], point.label in chain
        color = 0 if on_line else 1
        if point.error:
            parts.append(_whisker(here[0], y, point, color))
            occupied.append(around(here, 4, abs(y(point.accuracy + point.error) - here[1])))
        parts.append(pointed_at(point.label, dot(here, color, on_line)))
    room, crowded = (x.start, 46.0, width, height - 45), len(points) > ALL_NAMED
    for point in sorted(points, key=lambda p: p.label not in chain):
        on_line = point.label in chain
        parts.append(named(point.label, at[point.label], room, occupied, on_line, crowded))
    described = "; ".join(f"{p.label} {p.accuracy:.1f} % at {shown(p.cost)}" for p in points)
    return svg(width, height, title, described, "".join(parts))


def score_chart(
    scores: Sequence[Score], width: float = WIDTH, title: str = "Linear top-1 (%)"
) -> str:
    """One line per model: every seed as a dot, ± as a band, the mean as a stroke, the number.

    Names stand to the left where there is room, above the line where there is not.
    """
    name_width = max(text_width(s.label) for s in scores) + 16
    value_width = max(text_width(_with_error(s)) for s in scores) + 12
    beside = width - name_width - value_width > 200
    row, top = (30, 30) if beside else (42, 36)
    height = top + row * len(scores) + 30
    every = [v for s in scores for v in (s.value - (s.error or 0), s.value + (s.error or 0))]
    every += [v for s in scores for v in s.samples]
    x = spanning(every, name_width if beside else 6, width - value_width, margin=0.05)
    parts = [_score_axis(x, height - 26, width)]
    for i, score in enumerate(scores):
        y = top + row * i + (18 if beside else 28)
        parts.append(name(0, y + 4 if beside else y - 13, score.label, width))
        parts.append(_score_row(score, x, y, width))
    described = "; ".join(f"{s.label} {_with_error(s)}" for s in scores)
    return svg(width, height, title, described, "".join(parts))


def _score_axis(x: Scale, bottom: float, width: float) -> str:
    ticks = nice_ticks(x.low, x.high, max(2, int((x.end - x.start) / 70)))
    rules = (
        f'<line class="rule" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="28" y2="{bottom}"/>'
        for tick in ticks
    )
    labels = (
        text(middle, bottom + 16, label, "middle", "mute")
        for _, middle, label in labels_apart(x, ticks, tick_labels(ticks), width)
    )
    return "".join((*rules, *labels))


def _score_row(score: Score, x: Scale, y: float, width: float) -> str:
    parts = []
    if score.error:
        low, high = x(score.value - score.error), x(score.value + score.error)
        parts.append(
            f'<rect x="{low:.1f}" y="{y - 5}" width="{high - low:.1f}" height="10" rx="5" '
            f'style="fill:var(--c0);opacity:.25"/>'
        )
    for sample in score.samples:
        parts.append(f'<circle cx="{x(sample):.1f}" cy="{y}" r="2.5" style="fill:var(--c0)"/>')
    parts.append(
        f'<path style="stroke:var(--c0);stroke-width:2.5" '
        f'd="M{x(score.value):.1f},{y - 9}V{y + 9}"/>'
    )
    parts.append(text(width, y + 4, _with_error(score), "end"))
    return "".join(parts)


def _with_error(score: Score) -> str:
    return f"{score.value:.2f}" + (f" ± {score.error:.2f}" if score.error is not None else "")


def _whisker(px: float, y: Scale, point: CostPoint, color: int) -> str:
    low, high = y(point.accuracy - (point.error or 0)), y(point.accuracy + (point.error or 0))
    return (
        f'<path style="stroke:var(--c{color});stroke-width:1.5;opacity:.6;fill:none" '
        f'd="M{px:.1f},{low:.1f}V{high:.1f}M{px - 4:.1f},{low:.1f}h8M{px - 4:.1f},{high:.1f}h8"/>'
    )
