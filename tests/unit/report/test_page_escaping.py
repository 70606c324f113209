"""Whatever a page is given as text stays text."""

from dataclasses import fields
from functools import partial

import pytest
from jinja2 import UndefinedError
from test_report_page import PICTURE, Outline

from ssdistill.report.charts.comparisons import LatencyPoint, Score, SizePoint
from ssdistill.report.charts.confusion import confusion_svg
from ssdistill.report.charts.grids import Neighbors, ViewGrid
from ssdistill.report.charts.plots import Curves, Series
from ssdistill.report.document import Headline, rendered
from ssdistill.report.page import PageData, render_page
from ssdistill.report.tables.table import Table


def test_a_fact_that_a_template_names_must_be_given():
    with pytest.raises(UndefinedError, match="title"):
        rendered("frame.html")


TABLES = {f.name for f in fields(PageData) if "Table" in str(f.type)}


@pytest.mark.parametrize("name", [f.name for f in fields(PageData)])
def test_text_of_every_field_is_escaped(name):
    """No text can add an element to a page, wherever it stands."""
    bad = "<b title='\"'>&"
    table = Table((bad, bad), ((bad, bad),), bad, bad)
    texts = {
        "title": bad,
        "summary": bad,
        "notices": [bad],
        "headline": [Headline(bad, bad, bad)],
        "measure": bad,
        "sizes": [SizePoint(bad, 1e4, 90.0)],
        "latencies": [LatencyPoint(bad, 1.0, 90.0)],
        "scores": [Score(bad, 90.0)],
        "curves": [Curves(bad, (Series(bad, ((0, 1.0), (1, 2.0))),), bad, bad)],
        "confusions": [partial(confusion_svg, [[8, 2], [1, 9]], (bad, bad), bad)],
        "views": ViewGrid([[PICTURE]], (bad,), bad),
        "neighbors": Neighbors([PICTURE], [[PICTURE]], [[PICTURE]], [[True]], bad),
        "provenance": {bad: {bad: bad}},
        "config": bad,
    }
    # SVG of fronts is given as it is; names in a chain are looked up, never shown.
    texts |= dict.fromkeys(TABLES, table) | {"fronts": (), "chain": ()}
    assert name in texts, f"give PageData.{name} a value here whose every text is `bad`"
    given = {name: texts[name]}
    outline = Outline(render_page(PageData(**{"title": "t", "summary": "s"} | given)))
    assert "b" not in {tag for tag, _ in outline.tags}
    assert all("title" not in attributes for _, attributes in outline.tags)
