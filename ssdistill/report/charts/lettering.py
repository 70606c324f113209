"""Text in charts: upper bounds of its width, and shortening.

By hand: a library measures one font; a page is read in whatever font a browser has.
"""

import unicodedata
from html import escape

TITLE = 13.5
"""Size of titles in pixels; other text has 12."""
WIDE_LETTERS = frozenset("MWmw@%&…—–→±×≥≤")
ELLIPSIS = "…"


def text_width(content: str, size: float = 12.0) -> float:
    """Upper estimate in pixels, whatever font a browser takes."""
    return size * sum(map(_em, content))


def _em(letter: str) -> float:
    """Width of a letter over the size of its font, on the safe side for sans-serif fonts."""
    if unicodedata.combining(letter):
        return 0.0
    if unicodedata.east_asian_width(letter) in "WF" or unicodedata.category(letter) == "So":
        return 1.3
    if letter in WIDE_LETTERS:
        return 1.0
    return 0.78 if letter.isupper() else 0.62


def shortened(content: str, width: float, size: float = 12.0) -> str:
    """``content``, without its middle where it is wider than ``width`` pixels.

    Both ends stay, since names of models that belong together begin alike. For names only: a
    number without its middle is another number.
    """
    if text_width(content, size) <= width:
        return content
    for length in range(len(content) - 1, 0, -1):
        head = (length + 1) // 2
        tail = content[len(content) - (length - head) :]
        shown = f"{content[:head].rstrip()}{ELLIPSIS}{tail.lstrip()}"
        if text_width(shown, size) <= width:
            return shown
    return ELLIPSIS if text_width(ELLIPSIS, size) <= width else ""


def text(x: float, y: float, content: str, anchor: str = "start", kind: str = "") -> str:
    """A text element; ``kind`` is a class of the shared style."""
    css = f' class="{kind}"' if kind else ""
    place = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text x="{x:.1f}" y="{y:.1f}"{place}{css}>{escape(content)}</text>'


def name(
    x: float, y: float, content: str, width: float, anchor: str = "start", kind: str = ""
) -> str:
    """A name in at most ``width`` pixels; a tooltip shows a shortened one in full."""
    shown = shortened(content, width)
    element = text(x, y, shown, anchor, kind)
    return element if shown == content else pointed_at(content, element)


def pointed_at(title: str, element: str) -> str:
    """``element`` with a tooltip, which needs no script."""
    return f"<g><title>{escape(title)}</title>{element}</g>"


def between(x: float, content: str, low: float, high: float, size: float = 12.0) -> float:
    """The middle of a centered text, moved so that it lies between ``low`` and ``high``."""
    half = text_width(content, size) / 2
    return min(max(x, low + half), high - half)
