"""Confusion matrix as SVG.

By hand: names show where one points, and colors follow dark mode (see ``__init__.py``).
"""

import math
from collections.abc import Sequence

import numpy as np

from ssdistill.report.charts.axes import svg
from ssdistill.report.charts.grids import png_uri
from ssdistill.report.charts.lettering import pointed_at, shortened, text, text_width

CONFUSIONS = "Confusion matrix"
CONFUSION_LEDE = "Blue: correct. Orange: misclassified."
WIDTH = 560
MOST_NUMBERED = 20
"""With more classes the cells are too small for numbers, and are drawn as one image."""
FULL_ERROR = 0.3
"""Fraction of a class from which on a wrong answer has its full color."""
RIGHT_RGB, WRONG_RGB = (37, 99, 201), (208, 96, 20)
TURN = 50
"""Degrees by which names above the columns are turned where they have no room."""
RECALL = 52
"""Pixels of the column of recalls."""
LONGEST = 16
"""Letters of a class's name that are shown."""


def confusion_svg(
    confusion_KK: np.ndarray,
    names: Sequence[str],
    title: str = "Confusion",
    width: float = WIDTH,
) -> str:
    """True classes in rows, answers in columns; the color is the fraction of the row.

    Up to 20 classes every cell has its number of images and every row its recall.

    Args:
        confusion_KK: images by true and answered class.
        names: of the K classes.
    """
    confusion_KK = np.asarray(confusion_KK)
    described = _described(confusion_KK, names)
    if len(confusion_KK) > MOST_NUMBERED:
        content, height = _matrix_svg(confusion_KK, width)
    else:
        content, height = _cells(confusion_KK, names, width)
    return svg(width, height, title, described, content)


def _cells(confusion_KK: np.ndarray, names: Sequence[str], width: float) -> tuple[str, float]:
    size, short = len(names), [_short(label, 0.3 * width) for label in names]
    longest = max(map(text_width, short))
    left, right = longest + 10, RECALL
    cell = min((width - left - right) / size, 76)
    if turned := longest > cell - 4:
        right = max(right, longest * math.cos(math.radians(TURN)) + 8)
        cell = min((width - left - right) / size, 76)
    top = 58 + (longest * 0.8 if turned else 12)
    bottom = top + size * cell
    share_KK = confusion_KK / np.maximum(confusion_KK.sum(1, keepdims=True), 1)
    squares = "".join(
        f"M{left + k * cell + 0.75:.1f},{top + i * cell + 0.75:.1f}"
        f"h{cell - 1.5:.1f}v{cell - 1.5:.1f}h{1.5 - cell:.1f}z"
        for i in range(size)
        for k in range(size)
    )
    parts = [
        text(0, 35, "rows: true class, columns: predicted", kind="mute"),
        f'<path style="fill:var(--rule);opacity:.32" d="{squares}"/>',
    ]
    for k, (label, whole) in enumerate(zip(short, names, strict=True)):
        x, y = left + (k + 0.5) * cell, top - 8
        turn = f' transform="rotate(-{TURN} {x:.1f} {y:.1f})"' if turned else ""
        above = text(x, y, label, "start" if turned else "middle").replace("<text", f"<text{turn}")
        beside = text(left - 8, top + (k + 0.5) * cell + 4, label, "end")
        parts.append(above + beside if label == whole else pointed_at(whole, above + beside))
    parts.append(text(left + size * cell + 46, top - 8, "recall", "end", "mute"))
    for i in range(size):
        y = top + (i + 0.5) * cell
        recall = f"{100 * share_KK[i, i]:.0f} %" if confusion_KK[i].any() else "–"
        parts.append(text(left + size * cell + 46, y + 4, recall, "end", "mute"))
        parts += [
            _cell(
                (left + k * cell, top + i * cell), cell, share_KK[i, k], i == k, confusion_KK[i, k]
            )
            for k in np.flatnonzero(confusion_KK[i])
        ]
    return "".join(parts), bottom + 8


def _cell(at: tuple[float, float], cell: float, share: float, right: bool, count: int) -> str:
    strength = float(_strength(np.asarray(share, dtype=float), right))
    side = cell - 1.5
    # Numbers stay readable: smaller where cells are, in the color of the paper on strong ones.
    font = min(12.5, 0.92 * side / (0.58 * max(len(str(count)), 2)))
    ink = "fill:var(--paper);font-weight:600" if strength > 0.6 else "fill:var(--ink)"
    return (
        f'<rect x="{at[0] + 0.75:.1f}" y="{at[1] + 0.75:.1f}" width="{side:.1f}" '
        f'height="{side:.1f}" rx="2" '
        f'style="fill:var(--c{0 if right else 1});opacity:{strength:.2f}"/>'
        f'<text x="{at[0] + cell / 2:.1f}" y="{at[1] + cell / 2 + font * 0.36:.1f}" '
        f'text-anchor="middle" style="font-size:{font:.1f}px;{ink}">{count}</text>'
    )


def _matrix_svg(confusion_KK: np.ndarray, width: float) -> tuple[str, float]:
    share_KK = confusion_KK / np.maximum(confusion_KK.sum(1, keepdims=True), 1)
    size = len(share_KK)
    right_KK = np.eye(size, dtype=bool)
    rgba_KK4 = np.zeros((size, size, 4), np.uint8)
    rgba_KK4[..., :3] = np.where(right_KK[..., None], RIGHT_RGB, WRONG_RGB)
    strength_KK = np.where(right_KK, _strength(share_KK, True), _strength(share_KK, False))
    rgba_KK4[..., 3] = np.where(confusion_KK > 0, 255 * strength_KK, 0)
    side = width - 24
    content = (
        text(24, 35, "predicted class →", kind="mute")
        + '<text class="mute" transform="rotate(90 8 46)" x="8" y="46">true class →</text>'
        + f'<rect x="24" y="42" width="{side:g}" height="{side:g}" '
        + 'style="fill:var(--rule);opacity:.25"/>'
        + f'<image x="24" y="42" width="{side:g}" height="{side:g}" '
        + f'style="image-rendering:pixelated" href="{png_uri(rgba_KK4)}"/>'
    )
    return content, side + 46


def _strength(share: np.ndarray, right: bool) -> np.ndarray:
    """How opaque a cell is; a few wrong answers show already."""
    if right:
        return 0.1 + 0.85 * share
    return 0.05 + 0.85 * np.minimum(share / FULL_ERROR, 1) ** 0.75


def _short(label: str, width: float) -> str:
    cut = label if len(label) <= LONGEST else f"{label[: LONGEST - 1]}…"
    return shortened(cut, width)


def _described(confusion_KK: np.ndarray, names: Sequence[str]) -> str:
    """The most frequent mistakes in words."""
    wrong_KK = confusion_KK * ~np.eye(len(confusion_KK), dtype=bool)
    order = np.argsort(wrong_KK, axis=None, kind="stable")[::-1][:5]
    pairs = [np.unravel_index(place, wrong_KK.shape) for place in order]
    mistakes = [f"{names[i]} as {names[k]} {wrong_KK[i, k]}" for i, k in pairs if wrong_KK[i, k]]
    right = 100 * np.trace(confusion_KK) / max(confusion_KK.sum(), 1)
    return f"{right:.1f} % correct; most often mistaken: {', '.join(mistakes) or 'none'}"
