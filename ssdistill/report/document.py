"""The frame of every page: one file of HTML that needs no network and no script."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from typing import Any

HALF, WHOLE = 575, 760
"""Widths of charts, in pixels: two beside each other, and one alone."""


@dataclass(frozen=True)
class Headline:
    """One big number: what it is, the number, and what to compare it with."""

    name: str
    value: str
    note: str = ""


def document(
    title: str,
    summary: str,
    sections: Iterable[str],
    *,
    notices: Sequence[str] = (),
    headline: Sequence[Headline] = (),
    kicker: str = "ssdistill report",
    footer: str = "",
) -> str:
    """A page as text: HTML with its style inside, around sections that are HTML already.

    Args:
        title, summary, notices, kicker, footer: plain text.
        sections: of :func:`section`.
        headline: two to six big numbers.
    """
    style = resources.files("ssdistill.report").joinpath("page.css").read_text(encoding="utf-8")
    # The policy makes the promise of a page without network or script one the browser keeps.
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="generator" content="ssdistill">
<title>{escape(title)}</title>
<style>
{style}</style>
</head>
<body>
<header>
<p class="kicker">{escape(kicker)}</p>
<h1>{escape(title)}</h1>
<p class="summary">{escape(summary)}</p>
{"".join(f'<p class="notice" role="note">{escape(notice)}</p>' for notice in notices)}
{_headline(headline)}
</header>
<main>
{"".join(sections)}
</main>
<footer><p>{escape(footer)}</p></footer>
</body>
</html>
"""


def section(title: str, content: str, lede: str = "") -> str:
    """A heading, a line under it where there is one to say, and HTML."""
    under = f'<p class="lede">{escape(lede)}</p>' if lede else ""
    return f"<section><h2>{escape(title)}</h2>{under}{content}</section>\n"


def card(content: str, kind: str = "") -> str:
    """A framed figure; ``kind`` adds classes of the style."""
    return f'<figure class="{f"card {kind}".strip()}">{content}</figure>'


def drawn(chart: Callable[..., str], wide: float, *height: float) -> str:
    """Plots are drawn once for wide and once for narrow pages, so that text keeps its size."""
    widths = {"wide": wide, "narrow": 350}
    return "".join(card(chart(width, *height), kind) for kind, width in widths.items())


def side_by_side(charts: Sequence[Callable[..., str]], *height: float) -> str:
    """Charts in pairs, or one that is not wider than it need be."""
    if len(charts) == 1:
        return f'<div style="max-width:{WHOLE}px">{drawn(charts[0], WHOLE, *height)}</div>'
    rows = [charts[i : i + 2] for i in range(0, len(charts), 2)]
    return "".join(
        '<div class="pair equal">'
        + "".join(f"<div>{drawn(chart, HALF, *height)}</div>" for chart in row)
        + "</div>"
        for row in rows
    )


def caption(html: str) -> str:
    """Under a figure; nothing where there is nothing to say."""
    return f"<figcaption>{html}</figcaption>" if html else ""


def origin(provenance: Mapping[str, Any], config: str) -> str:
    """Collapsed provenance: nested facts, and the configuration as text."""
    facts = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in flat(provenance)
    )
    parts = []
    if facts:
        parts.append(
            f'<details><summary>Provenance</summary><dl class="facts">{facts}</dl></details>'
        )
    if config:
        shown = f'<pre tabindex="0"><code>{escape(config)}</code></pre>'
        parts.append(f"<details><summary>Configuration</summary>{shown}</details>")
    return "".join(parts)


def flat(facts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """``{"git": {"sha": "1a"}}`` as ``("git sha", "1a")``; empty values are left out."""
    for key, value in facts.items():
        name = f"{prefix} {key}".strip()
        if isinstance(value, Mapping):
            yield from flat(value, name)
        elif value not in (None, "", []):
            yield name, value if isinstance(value, str) else json.dumps(value, default=str)


def _headline(items: Sequence[Headline]) -> str:
    if not items:
        return ""
    cells = (
        f'<div><dt>{escape(item.name)}</dt><dd class="value">{escape(item.value)}</dd>'
        f'<dd class="note">{escape(item.note)}</dd></div>'
        for item in items
    )
    return f'<dl class="headline">{"".join(cells)}</dl>'
