"""Models beside each other: accuracy against size and time, scores with their spread, as SVG."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from ssdistill.report.charts.axes import (
    Scale,
    bytes_label,
    dot,
    frame,
    left_margin,
    nice_ticks,
    path,
    spanning,
    svg,
    tick_labels,
)
from ssdistill.report.charts.lettering import between, name, shortened, text, text_width

WIDTH = 400
MEASURE = "linear top-1 (%)"
"""What accuracy is, unless something else is said."""
ALL_NAMED = 12
"""Points up to which each has its name; of more, those have it whose name covers nothing."""


@dataclass(frozen=True)
class SizePoint:
    """A model by its size in bytes and its accuracy in percent, with the spread if known."""

    label: str
    size_bytes: float
    accuracy: float
    error: float | None = None

    @property
    def cost(self) -> float:
        return self.size_bytes


@dataclass(frozen=True)
class LatencyPoint:
    """A model by the ms it takes for one input and its accuracy, with the spread if known."""

    label: str
    latency_ms: float
    accuracy: float
    error: float | None = None

    @property
    def cost(self) -> float:
        return self.latency_ms


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
) -> str:
    """Accuracy over ms (logarithmic); ``chain`` as for :func:`size_chart`."""
    axes = ("time for one image", MEASURE)
    return _cost_chart(points, chain, (width, height), title, axes, _ms_label)


def _ms_label(value: float) -> str:
    return f"{value:.3g} ms"


def _cost_chart(
    points: Sequence[SizePoint | LatencyPoint],
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
    steps = [at[name] for name in chain if name in at]
    if len(steps) > 1:
        parts.append(f'<path class="line" style="stroke:var(--c0)" d="{path(steps)}"/>')
    occupied = [(px - 6, py - 6, px + 6, py + 6) for px, py in at.values()]
    occupied += [(px - 2, py - 2, px + 2, py + 2) for px, py in _along(steps)]
    for point in points:
        here = at[point.label]
        color = 0 if point.label in chain else 1
        if point.error:
            parts.append(_whisker(here[0], y, point, color))
            reach = abs(y(point.accuracy + point.error) - here[1])
            occupied.append((here[0] - 4, here[1] - reach, here[0] + 4, here[1] + reach))
        named = f"<title>{escape(point.label)}</title>"
        parts.append(f"<g>{named}{dot(here, color, point.label in chain)}</g>")
    crowded = len(points) > ALL_NAMED
    for point in sorted(points, key=lambda p: p.label not in chain):
        on_line = point.label in chain
        room = (x.start, 46.0, width, height - 45)
        parts.append(_label(point, at[point.label], on_line, room, occupied, crowded))
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
    parts, last = [], -math.inf
    ticks = nice_ticks(x.low, x.high, max(2, int((x.end - x.start) / 70)))
    for tick, label in zip(ticks, tick_labels(ticks), strict=True):
        at, middle = x(tick), between(x(tick), label, 0, width)
        parts.append(f'<line class="rule" x1="{at:.1f}" x2="{at:.1f}" y1="28" y2="{bottom}"/>')
        if middle - text_width(label) / 2 >= last + 8:
            parts.append(text(middle, bottom + 16, label, "middle", "mute"))
            last = middle + text_width(label) / 2
    return "".join(parts)


def _along(steps: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Places on the line through ``steps``, close enough to keep labels off it."""
    return [
        (a[0] + (b[0] - a[0]) * i / 24, a[1] + (b[1] - a[1]) * i / 24)
        for a, b in pairwise(steps)
        for i in range(25)
    ]


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


def _whisker(px: float, y: Scale, point: SizePoint | LatencyPoint, color: int) -> str:
    low, high = y(point.accuracy - (point.error or 0)), y(point.accuracy + (point.error or 0))
    return (
        f'<path style="stroke:var(--c{color});stroke-width:1.5;opacity:.6;fill:none" '
        f'd="M{px:.1f},{low:.1f}V{high:.1f}M{px - 4:.1f},{low:.1f}h8M{px - 4:.1f},{high:.1f}h8"/>'
    )


def _label(
    point: SizePoint | LatencyPoint,
    at: tuple[float, float],
    on_line: bool,
    room: tuple[float, float, float, float],
    occupied: list[tuple[float, float, float, float]],
    crowded: bool,
) -> str:
    """The label where it covers nothing; ``occupied`` boxes grow by the one it gets.

    Points on the line are named above it if they can, the others at their side. Where it is
    ``crowded`` there is no label that covers something. ``room``: left, top, right and bottom of
    where labels may stand.
    """
    shown = shortened(point.label, room[2] - room[0])
    w, (px, py) = text_width(shown), at
    near, far = _places(at, w, on_line)

    def cost(place: tuple[float, float]) -> float:
        left, y = place
        box = (left, y - 11, left + w, y + 3)
        outside = left < room[0] or left + w > room[2] or y < room[1] or y > room[3]
        hits = sum(
            box[0] < t[2] and t[0] < box[2] and box[1] < t[3] and t[1] < box[3] for t in occupied
        )
        return hits + 100 * outside

    place = min(near + far, key=cost)
    if crowded and cost(place):
        return ""
    x, y = min(max(place[0], room[0]), room[2] - w), min(max(place[1], room[1]), room[3])
    occupied.append((x, y - 11, x + w, y + 3))
    leader = ""
    if place in far:
        end = y + 5 if y < py else y - 13
        leader = (
            f'<path style="stroke:currentColor;stroke-width:1;opacity:.25;fill:none" '
            f'd="M{px:.1f},{py:.1f}L{x + w / 2:.1f},{end:.1f}"/>'
        )
    return leader + name(x, y, point.label, room[2] - room[0])


def _places(
    at: tuple[float, float], w: float, on_line: bool
) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """Left ends of baselines around a point, the best first, and further ones for a crowd."""
    px, py = at
    beside = [(px + 10, py + 4), (px - 10 - w, py + 4)]
    around = [
        (px + dx - w / 2, py + dy)
        for dy in (-12, 21, -18, 27, -26, 35)
        for dx in (0, -w / 3, w / 3)
    ]
    # Where several models stand in one place, some are named from afar.
    far = [
        (px + dx - w / 2, py + dy)
        for dy in (-44, 50, -60, 66, -76, 82, -92, 98)
        for dx in (0, -w / 2 - 14, w / 2 + 14)
    ]
    return (around + beside if on_line else beside + around), far
