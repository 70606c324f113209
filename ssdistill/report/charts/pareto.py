"""Damage against cost of searched and of uniform plans, as SVG.

By hand: it shares scales and legend with the other charts (figures in ``__init__.py``).
"""

from collections.abc import Sequence

from ssdistill.measure.pareto import Front
from ssdistill.report.charts.axes import (
    bytes_label,
    dot,
    frame,
    left_margin,
    polyline,
    spanning,
    svg,
    tick_label,
    value_label,
)
from ssdistill.report.charts.legend import Entry, legend

WIDTH = 400
NAMES = {"bytes": "size on disk", "macs": "multiply-accumulates", "parameters": "parameters"}
LEAST = 1e-6
"""Damages below this are drawn there: a logarithm knows no zero."""
Points = Sequence[tuple[float, float]]


def front_svg(front: Front, width: float = WIDTH, height: float = 300) -> str:
    """Measured damage over cost, both logarithmic: one line of searched, one of uniform plans.

    Returns:
        an SVG element that carries its colors, or an empty string without points.
    """
    searched = _sorted([(p.cost, p.measured) for p in front.points])
    uniform = _sorted(
        [
            (p.uniform_cost, p.uniform_measured)
            for p in front.points
            if p.uniform_cost is not None and p.uniform_measured is not None
        ]
    )
    if not searched:
        return ""
    every = [*searched, *uniform]
    label = bytes_label if front.unit == "bytes" else tick_label
    y = spanning([d for _, d in every], height - 42, 62, log=True, margin=0.08)
    x = spanning([c for c, _ in every], left_margin(y), width - 14, log=True, margin=0.08)
    names = ("searched", "uniform") if uniform else ("searched",)
    title = f"{front.model}: {' and '.join(names)} plans"
    what = "1 − cosine" if front.measure == "cosine" else "1 − CKA"
    parts = [
        legend([Entry(name, f"var(--c{i})") for i, name in enumerate(names)], width)[0],
        frame(x, y, (NAMES[front.unit], f"damage ({what})"), width, label, top=50),
    ]
    for color, points in ((1, uniform), (0, searched)):
        drawn = [(x(cost), y(damage)) for cost, damage in points]
        if len(drawn) > 1:
            parts.append(polyline(drawn, color))
        parts += [dot(at, color, color == 0) for at in drawn]
    described = "; ".join(
        f"{name} {value_label(damage)} at {label(cost)}"
        for name, points in (("searched", searched), ("uniform", uniform))
        for cost, damage in points
    )
    return svg(width, height, title, described, "".join(parts))


def _sorted(points: Points) -> list[tuple[float, float]]:
    return sorted({(cost, max(damage, LEAST)) for cost, damage in points})
