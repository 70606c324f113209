"""Scatter plot of two-dimensional embeddings, as SVG.

By hand: a class is one path, and colors follow dark mode (see ``__init__.py``).
"""

from collections.abc import Sequence
from html import escape

import numpy as np

from ssdistill.report.charts.axes import Scale, svg
from ssdistill.report.charts.legend import Entry, Mark, legend
from ssdistill.report.charts.lettering import name, shortened, text_width
from ssdistill.report.charts.placing import overlap

WIDTH = 560
SHAPE = 0.98
"""Height of a map over its width, by default."""
LEAST_SHAPE = 0.6
"""Height of the part with the dots over the width, below a legend of any length."""
LIGHT = ("#2563c9", "#d9660a", "#0b8f5b", "#c3304a", "#7a4fd0",
         "#8a5a2b", "#d1489b", "#5e6b78", "#938000", "#0a8fb4")  # fmt: skip
DARK = ("#7db0ff", "#ffa25e", "#5bd69a", "#ff7f8f", "#b6a2ff",
        "#d0a574", "#ff96cf", "#b3bcc7", "#dcc65a", "#5fd3ef")  # fmt: skip
MOST_NAMED = 20
"""Classes that colors and shapes tell apart; of more, colors repeat and no names are given."""
BOLD = 1.08
NAMED_INSIDE = 12
"""Classes up to which names also stand among their points."""


def map_svg(
    points_N2: np.ndarray,
    labels_N: np.ndarray | None = None,
    names: Sequence[str] = (),
    title: str = "Embeddings",
    plane: str = "",
    width: float = WIDTH,
    height: float | None = None,
) -> str:
    """One dot per image, colored by its class where that is known.

    Args:
        points_N2: places; both axes have one unit, so that distances are true.
        labels_N: position in ``names`` of every image's class.
        names: of the classes.
        plane: what the two dimensions are.
    """
    points_N2, height = np.asarray(points_N2, dtype=float), height or width * SHAPE
    used = sorted(set(labels_N.tolist())) if labels_N is not None else []
    named = 0 < len(used) <= MOST_NAMED
    shown = [Entry(str(names[k]), f"var(--m{k % len(LIGHT)})", mark=_mark(k)) for k in used]
    classes, top = legend(shown, width) if named else ("", 30.0)
    # A long legend takes no room from the dots.
    height = max(height, top + LEAST_SHAPE * width)
    x, y = _scales(points_N2, width, (top + 22, height - 26))
    drawn_N2 = np.stack([[x(a) for a in points_N2[:, 0]], [y(b) for b in points_N2[:, 1]]], 1)
    groups = [(k, drawn_N2[labels_N == k]) for k in used] if used else [(0, drawn_N2)]
    frame = (
        f'<rect x=".5" y="{top + 8:.1f}" width="{width - 1:g}" height="{height - top - 26:.1f}" '
        'rx="6" style="fill:none;stroke:var(--rule)"/>'
    )
    dots = "".join(_dots(place_n2, k, len(points_N2)) for k, place_n2 in groups)
    inside = _names_inside(groups, names, width) if named and len(used) <= NAMED_INSIDE else ""
    under = name(0, height - 4, plane, width, kind="mute") if plane else ""
    # Hex colors of its own: more of them than a chart of curves needs.
    style = _palette(min(len(LIGHT), max(used, default=0) + 1))
    described = f"{len(points_N2)} images" + (f" of {len(used)} classes" if used else "")
    return svg(width, height, title, described, style + classes + frame + dots + inside + under)


def _palette(count: int) -> str:
    light = ";".join(f"--m{i}:{c}" for i, c in enumerate(LIGHT[:count]))
    dark = ";".join(f"--m{i}:{c}" for i, c in enumerate(DARK[:count]))
    return f"<style>.ssd{{{light}}}@media (prefers-color-scheme:dark){{.ssd{{{dark}}}}}</style>"


def _scales(
    points_N2: np.ndarray, width: float, between: tuple[float, float]
) -> tuple[Scale, Scale]:
    """The largest scales of one unit that show every point."""
    low, high = points_N2.min(0), points_N2.max(0)
    middle = (low + high) / 2
    room = np.array([width - 24, between[1] - between[0]])
    unit = float(np.max(np.maximum(high - low, 1e-9) / room))
    half = room * unit / 2
    return (
        Scale(middle[0] - half[0], middle[0] + half[0], 12, width - 12),
        Scale(middle[1] - half[1], middle[1] + half[1], between[1], between[0]),
    )


def _dots(place_n2: np.ndarray, color: int, total: int) -> str:
    """All dots of a class in one path: lines without length, with caps."""
    size = 6.5 if total <= 300 else 5.6 if total <= 800 else 4.4
    path = "".join(f"M{x:.1f},{y:.1f}h.01" for x, y in place_n2)
    cap = "square" if _mark(color) == "square" else "round"
    return (
        f'<path style="fill:none;stroke:var(--m{color % len(LIGHT)});stroke-width:{size};'
        f'stroke-linecap:{cap};opacity:.72" d="{path}"/>'
    )


def _mark(k: int) -> Mark:
    """Shapes tell classes apart whose colors are the same."""
    return "square" if (k // len(LIGHT)) % 2 else "dot"


def _names_inside(
    groups: Sequence[tuple[int, np.ndarray]], names: Sequence[str], width: float
) -> str:
    """A class's name at the median of its dots, unless another stands there."""
    parts, occupied = [], []
    for k, place_n2 in sorted(groups, key=lambda group: -len(group[1])):
        # Bold letters are a little wider.
        shown = shortened(names[k], (width - 8) / BOLD, 13)
        half = text_width(shown, 13) * BOLD / 2
        x, y = np.median(place_n2, 0)
        x = min(max(x, half), width - half)
        box = (x - half, y - 10, x + half, y + 5)
        if any(overlap(box, other) for other in occupied):
            continue
        occupied.append(box)
        parts.append(
            f'<text x="{x:.1f}" y="{y + 4:.1f}" text-anchor="middle" style="font-size:13px;'
            "font-weight:650;paint-order:stroke;stroke:var(--paper);stroke-width:4px;"
            f'stroke-linejoin:round">{escape(shown)}</text>'
        )
    return "".join(parts)
