"""Place the names of points so that they cover neither points, nor lines, nor each other.

By hand: in matplotlib and Altair names cover each other (figures in ``__init__.py``).
"""

from collections.abc import Sequence
from itertools import pairwise

from ssdistill.report.charts.lettering import name, shortened, text_width

Place = tuple[float, float]
Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels; y grows downwards, as in SVG."""
STEPS = 24
"""Parts of a piece of a line that a name keeps off."""


def overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def around(place: Place, x: float, y: float) -> Box:
    """The box that reaches ``x`` and ``y`` pixels from its middle."""
    return (place[0] - x, place[1] - y, place[0] + x, place[1] + y)


def boxes_along(line: Sequence[Place]) -> list[Box]:
    """Boxes on a polyline, close enough to keep names off it."""
    return [
        around((a[0] + (b[0] - a[0]) * i / STEPS, a[1] + (b[1] - a[1]) * i / STEPS), 2, 2)
        for a, b in pairwise(line)
        for i in range(STEPS + 1)
    ]


def named(
    label: str, at: Place, room: Box, occupied: list[Box], on_line: bool, crowded: bool
) -> str:
    """The name of a point as SVG, where it hits the fewest of the ``occupied`` boxes.

    Candidates are tried in the order of :func:`_places`. ``occupied`` grows by the box that is
    taken. A name that stands far from its point is joined to it by a thin line.

    Args:
        room: where names may stand.
        on_line: whether a line runs through the point, which is then named above or below.
        crowded: leave the name out where it would cover something.
    """
    shown = shortened(label, room[2] - room[0])
    wide, (px, py) = text_width(shown), at
    near, far = _places(at, wide, on_line)

    def cost(place: Place) -> float:
        left, y = place
        box = _box(left, y, wide)
        outside = left < room[0] or left + wide > room[2] or y < room[1] or y > room[3]
        return sum(overlap(box, other) for other in occupied) + 100 * outside

    place = min(near + far, key=cost)
    if crowded and cost(place):
        return ""
    x, y = min(max(place[0], room[0]), room[2] - wide), min(max(place[1], room[1]), room[3])
    occupied.append(_box(x, y, wide))
    leader = ""
    if place in far:
        end = y + 5 if y < py else y - 13
        leader = (
            f'<path style="stroke:currentColor;stroke-width:1;opacity:.25;fill:none" '
            f'd="M{px:.1f},{py:.1f}L{x + wide / 2:.1f},{end:.1f}"/>'
        )
    return leader + name(x, y, label, room[2] - room[0])


def _box(left: float, baseline: float, wide: float) -> Box:
    return (left, baseline - 11, left + wide, baseline + 3)


def _places(at: Place, wide: float, on_line: bool) -> tuple[list[Place], list[Place]]:
    """Left ends of baselines near a point, the best first, and further ones for a crowd.

    ::

                 far    far    far       44 to 92 above, joined by a thin line
                   above above above     12, 18, 26 above; centered, a third left, a third right
          beside left  (o)  beside right
                   below below below     21, 27, 35 below
                 far    far    far       50 to 98 below

    Beside comes first, and above where a line runs through the point. Of the others each height
    above is followed by one below.
    """
    px, py = at
    beside = [(px + 10, py + 4), (px - 10 - wide, py + 4)]
    close = [
        (px + dx - wide / 2, py + dy)
        for dy in (-12, 21, -18, 27, -26, 35)
        for dx in (0, -wide / 3, wide / 3)
    ]
    far = [
        (px + dx - wide / 2, py + dy)
        for dy in (-44, 50, -60, 66, -76, 82, -92, 98)
        for dx in (0, -wide / 2 - 14, wide / 2 + 14)
    ]
    return (close + beside if on_line else beside + close), far
