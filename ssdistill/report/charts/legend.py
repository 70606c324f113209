"""Legends above charts: entries in as many lines as they need.

By hand, as the charts are (figures in ``__init__.py``): lines wrap, and numbers follow names.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

from ssdistill.report.charts.lettering import pointed_at, shortened, text_width

Mark = Literal["line", "dot", "square"]
SHAPES = {"line": (12, 4, 2, 7), "dot": (10, 10, 5, 9), "square": (10, 10, 0, 9)}
"""Width, height, rounding and rise over the baseline of a mark, in pixels."""
FIRST, LINE, GAP = 35.0, 17.0, 10.0
"""Pixels: first baseline, between two baselines, and between two entries."""


@dataclass(frozen=True)
class Entry:
    """A mark in a color (``fill``, as in CSS), what it stands for, and a number beside that."""

    label: str
    fill: str
    value: str = ""
    mark: Mark = "line"


def legend(entries: Sequence[Entry], width: float) -> tuple[str, float]:
    """Entries as SVG, and the last baseline in pixels; a label is shortened, a number never is."""
    parts, x, y = [], 0.0, FIRST
    for entry in entries:
        wide, high, rounding, rise = SHAPES[entry.mark]
        value = f'<tspan class="mute" dx="5">{escape(entry.value)}</tspan>' if entry.value else ""
        beside = wide + 5 + (5 + text_width(entry.value) if value else 0)
        label = shortened(entry.label, width - beside)
        needed = beside + text_width(label)
        if x and x + needed > width:
            x, y = 0.0, y + LINE
        drawn = (
            f'<rect x="{x:.1f}" y="{y - rise:.1f}" width="{wide}" height="{high}" '
            f'rx="{rounding}" style="fill:{entry.fill}"/>'
            f'<text x="{x + wide + 5:.1f}" y="{y:.1f}">{escape(label)}{value}</text>'
        )
        parts.append(drawn if label == entry.label else pointed_at(entry.label, drawn))
        x += needed + GAP
    return "".join(parts), y
