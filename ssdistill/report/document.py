"""Pages from templates: each is one file of HTML that needs no network and no script."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from ssdistill.report.charts.confusion import CONFUSION_LEDE, CONFUSIONS
from ssdistill.report.charts.grids import image_grid, png_uri
from ssdistill.report.charts.plots import line_chart

NARROW = 350
"""Width in pixels of charts for a phone; templates name the widths for larger windows."""


@dataclass(frozen=True)
class Headline:
    """One big number: what it is, the number, and what to compare it with."""

    name: str
    value: str
    note: str = ""


def rendered(template: str, **facts: Any) -> str:
    """The page that ``templates/<template>`` makes of ``facts``; all text in them is escaped.

    Raises:
        jinja2.UndefinedError: the template names a fact that is not given.
    """
    return _environment().get_template(template).render(facts)


def flat(facts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """``{"git": {"sha": "1a"}}`` as ``("git sha", "1a")``; empty values are omitted."""
    for key, value in facts.items():
        name = f"{prefix} {key}".strip()
        if isinstance(value, Mapping):
            yield from flat(value, name)
        elif value not in (None, "", []):
            yield name, value if isinstance(value, str) else json.dumps(value, default=str)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("ssdistill.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["flat"] = flat
    environment.globals |= {
        "narrow": NARROW,
        "line_chart": line_chart,
        "image_grid": image_grid,
        "png_uri": png_uri,
        "confusion_title": CONFUSIONS,
        "confusion_lede": CONFUSION_LEDE,
    }
    return environment
