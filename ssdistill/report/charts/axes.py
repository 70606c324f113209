"""Scales, ticks and the frame that every plot shares.

By hand: libraries write fixed colors, which do not follow dark mode (figures in ``__init__.py``).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

from ssdistill.report.charts.lettering import (
    TITLE,
    between,
    name,
    shortened,
    text,
    text_width,
)
from ssdistill.report.tables.models import scaled

INK = """
.ssd{--ink:#1d2228;--mute:#646c76;--rule:#e2e0da;--paper:#fff;--c0:#2563c9;--c1:#c2570c;
--c2:#0b7f74;--c3:#a8296b;--c4:#6b4fc8;--c5:#7a6a10;
font:12px/1.2 system-ui,-apple-system,"Segoe UI",Roboto,"Liberation Sans",Arial,sans-serif;
font-variant-numeric:tabular-nums}
@media (prefers-color-scheme:dark){.ssd{--ink:#eceae5;--mute:#a2a8b0;--rule:#343a42;
--paper:#171a1e;--c0:#7db0ff;--c1:#ffa25e;--c2:#4fd0bf;--c3:#f58bbf;--c4:#b6a2ff;--c5:#dcc65a}}
.ssd text{fill:var(--ink)}.ssd .mute{fill:var(--mute)}.ssd .title{font-weight:600;font-size:13.5px}
.ssd .rule{stroke:var(--rule);stroke-width:1}.ssd .axis{stroke:var(--mute);stroke-width:1}
.ssd .line{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}
.ssd .raw{fill:none;stroke-width:1;opacity:.28}
"""
"""Colors for light and dark paper; scoped to ``.ssd``, so that a page may hold many plots."""

COLORS = 6
SAME = 1e-9
"""Relative difference below which numbers are drawn as one."""
LINE = 14
"""Pixels between two lines of text."""


@dataclass(frozen=True)
class Scale:
    """Maps ``low``..``high`` to ``start``..``end`` pixels, linearly or by logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(value)
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, count: int = 5) -> list[float]:
        """Round values within the range."""
        return (
            log_ticks(self.low, self.high) if self.log else nice_ticks(self.low, self.high, count)
        )


def spanning(
    values: list[float], start: float, end: float, log: bool = False, margin: float = 0.06
) -> Scale:
    """A scale that holds all values with some air; a single value sits in the middle."""
    low, high = min(values), max(values)
    if high - low < SAME * max(abs(low), abs(high)):
        low = high = (low + high) / 2
    if log:
        spread = max(math.log10(high / low), 0.15) * margin
        return Scale(low / 10**spread, high * 10**spread, start, end, True)
    air = (high - low) * margin if high > low else abs(high) * 0.1 or 1.0
    return Scale(low - air, high + air, start, end)


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About ``count`` multiples of 1, 2, 2.5 or 5 times a power of ten in [low, high]."""
    rough = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    digits = 2 - math.floor(math.log10(step))
    return [round(i * step, digits) for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten, with 2 and 5 between them where the range is short."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
        values = [f * 10.0**d for d in decades for f in factors if low <= f * 10.0**d <= high]
        if len(values) >= 3:
            break
    return values if len(values) >= 2 else nice_ticks(low, high, 3)


def tick_label(value: float) -> str:
    """``1500`` as ``1.5k``, ``0.25`` as ``0.25``, ``1e-05`` as ``1e-5``."""
    if value and (abs(value) < 1e-3 or abs(value) >= 1e7):
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value / 1000:g}k" if abs(value) >= 1000 else f"{value:g}"


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """Labels of one axis, with as many digits as tell them apart."""
    labels = [tick_label(value) for value in ticks]
    for digits in range(7, 17):
        if len(set(labels)) == len(set(ticks)):
            break
        labels = [f"{value:.{digits}g}" for value in ticks]
    return labels


def left_margin(y: Scale) -> float:
    """Pixels that the labels of a y axis need to its left."""
    return max((text_width(label) for label in tick_labels(y.ticks())), default=20) + 9


def value_label(value: float) -> str:
    """Four significant digits, as in ``0.09`` and ``2.003``; tiny and huge ones like a tick."""
    short = value == 0 or 1e-3 <= abs(value) < 1e7
    return f"{value:.4g}" if short else tick_label(value)


def bytes_label(value: float) -> str:
    """``500000`` as ``500 kB``."""
    number, _, unit = scaled(value, "bytes").partition(" ")
    return f"{float(number):g} {unit}"


def polyline(points: Sequence[tuple[float, float]], color: int, kind: str = "line") -> str:
    """A line through points; ``kind`` is a class of the style: ``line`` or, faint, ``raw``."""
    d = "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<path class="{kind}" style="stroke:var(--c{color % COLORS})" d="{d}"/>'


def dot(at: tuple[float, float], color: int, filled: bool = True) -> str:
    """A point with a rim in the color of the paper, so that it stands off lines."""
    ink = f"var(--c{color % COLORS})"
    fill, rim = (ink, "var(--paper)") if filled else ("var(--paper)", ink)
    return (
        f'<circle cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="5" '
        f'style="fill:{fill};stroke:{rim};stroke-width:2"/>'
    )


def frame(
    x: Scale,
    y: Scale,
    labels: tuple[str, str],
    width: float,
    show_x: Callable[[float], str] | None = None,
    top: float = 0.0,
) -> str:
    """Horizontal rules, tick labels, the x axis, and the names of both axes.

    Args:
        labels: names of the axes; that of y stands above the axis, with its baseline at ``top``.
        width: of the chart, which no label leaves. ``x`` begins right of :func:`left_margin`.
        show_x: writes a tick of the x axis.
    """
    return "".join(
        (
            *_rules(x, y),
            *_x_axis(x, y.start, width, show_x),
            name(x.end, y.start + 36, labels[0], x.end, "end", "mute"),
            name(0, top, labels[1], width, "start", "mute"),
        )
    )


def _rules(x: Scale, y: Scale) -> Iterator[str]:
    ticks, last = y.ticks(), math.inf
    for value, label in zip(ticks, tick_labels(ticks), strict=True):
        at = y(value)
        yield f'<line class="rule" x1="{x.start}" x2="{x.end}" y1="{at:.1f}" y2="{at:.1f}"/>'
        if abs(last - at) >= LINE:
            yield text(x.start - 7, at + 4, label, "end", "mute")
            last = at


def _x_axis(
    x: Scale, bottom: float, width: float, show: Callable[[float], str] | None
) -> Iterator[str]:
    yield f'<line class="axis" x1="{x.start}" x2="{x.end}" y1="{bottom}" y2="{bottom}"/>'
    ticks = x.ticks()
    labels = list(map(show, ticks)) if show else tick_labels(ticks)
    for at, middle, label in labels_apart(x, ticks, labels, width):
        yield f'<line class="axis" x1="{at:.1f}" x2="{at:.1f}" y1="{bottom}" y2="{bottom + 4}"/>'
        yield text(middle, bottom + 18, label, "middle", "mute")


def labels_apart(
    x: Scale, ticks: Sequence[float], labels: Sequence[str], width: float
) -> Iterator[tuple[float, float, str]]:
    """Of ticks that have room for their label: their x, the middle of the label, and the label."""
    last = -math.inf
    for value, label in zip(ticks, labels, strict=True):
        half = text_width(label) / 2
        middle = between(x(value), label, 0, width)
        if middle - half >= last + 8:
            last = middle + half
            yield x(value), middle, label


def svg(width: float, height: float, title: str, description: str, content: str) -> str:
    """A whole image, alone or inside a page: it carries its colors and its description."""
    # Semi-bold letters are a little wider.
    heading = shortened(title, width / 1.06, TITLE)
    return (
        f'<svg class="ssd" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
        f'role="img" aria-label="{escape(f"{title}. {description}", quote=True)}">'
        f"<style>{INK}</style><title>{escape(title)}</title><desc>{escape(description)}</desc>"
        f"{text(0, 15, heading, kind='title')}{content}</svg>"
    )
