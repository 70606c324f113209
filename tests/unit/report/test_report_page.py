import base64
import io
import math
import re
from functools import partial
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ssdistill.report.charts.axes import log_ticks, nice_ticks, text_width, tick_label
from ssdistill.report.charts.comparisons import Score, SizePoint, score_chart, size_chart
from ssdistill.report.charts.confusion import confusion_svg
from ssdistill.report.charts.grids import (
    CELL,
    GAP,
    SHARED_RGB,
    Neighbors,
    ViewGrid,
    image_grid,
    png_uri,
)
from ssdistill.report.charts.plots import (
    MOST_POINTS,
    Curves,
    Series,
    curves_of,
    line_chart,
    smoothed,
    thinned,
)
from ssdistill.report.page import Headline, PageData, render_page, write_page
from ssdistill.report.tables.models import Table

SVG = "{http://www.w3.org/2000/svg}"
PICTURE = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
SIZES = (
    SizePoint("teacher", 2_900_000, 96.9, 0.2),
    SizePoint("distilled", 331_000, 95.6, 0.4),
    SizePoint("int8", 44_000, 94.6),
    SizePoint("control", 331_000, 91.8, 0.7),
)
CURVES = Curves("distill: losses", (Series("total", tuple((i, 1 / (i + 1)) for i in range(900))),))


def page(**others):
    facts = {
        "title": "quickstart <digits>",
        "summary": "Small & honest.",
        "notices": ["Digits show that it works, not what it is worth."],
        "headline": [Headline("int8 student", "94.6 %", "44 kB")],
        "results": Table(("model", "linear"), (("int8", "94.60 ± 0.30"),), "n = 3 seeds."),
        "claims": Table(("claim", "verdict"), (("distilled > control", "HOLDS"),)),
        "sizes": SIZES,
        "chain": ("teacher", "distilled", "int8"),
        "scores": [Score("int8", 94.6, 0.3, (94.3, 94.6, 94.9)), Score("control", 91.8)],
        "curves": [CURVES],
        "confusions": [partial(confusion_svg, [[8, 2], [1, 9]], ("cat", "dog"), "int8, linear")],
        "views": ViewGrid([[PICTURE] * 3] * 2, ("image", "teacher", "student"), "Views."),
        "neighbors": Neighbors(
            [PICTURE], [[PICTURE, PICTURE]], [[PICTURE, PICTURE]], [[True, False]]
        ),
        "provenance": {"git": {"sha": "0123abcd", "dirty": False}, "python": "3.12", "empty": None},
        "config": "losses: {cosine: {weight: 1.0}}  # <none>\n",
    }
    return PageData(**facts | others)


class Outline(HTMLParser):
    """Start tags with attributes; fails on tags that do not nest."""

    VOID = ("meta", "img", "wbr", "br", "link")

    def __init__(self, html):
        super().__init__()
        self.tags, self.open = [], []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_is_one_file_that_loads_nothing_and_runs_nothing(tmp_path):
    path = write_page(tmp_path, page())
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"] == [path.name]
    outline = Outline(path.read_text())
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in outline.tags}
    for _, attributes in outline.tags:
        assert attributes.get("src", "data:").startswith("data:")
        assert "href" not in attributes
        assert not any(name.startswith("on") for name in attributes)
    without_namespace = path.read_text().replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?:|//[a-z]|@import|url\(", without_namespace)


def test_page_shows_every_part_and_escapes_text():
    html = render_page(page())
    for shown in (
        "quickstart &lt;digits&gt;",
        "Small &amp; honest.",
        "Digits show that it works",
        "94.60 ± 0.30",
        "distilled &gt; control",
        "git sha",
        "0123abcd",
        "# &lt;none&gt;",
        "(1 of 2 shown)",
        "Confusion matrix",
    ):
        assert shown in html
    assert "<digits>" not in html and "<none>" not in html
    assert "prefers-color-scheme:dark" in html and "prefers-color-scheme: dark" in html


def test_pictures_and_plots_have_a_text_for_those_who_cannot_see_them():
    tags = Outline(render_page(page())).tags
    assert all(a.get("alt") for tag, a in tags if tag == "img")
    plots = [a for tag, a in tags if tag == "svg"]
    assert len(plots) == 7  # comparisons and confusion wide and narrow, one chart of curves
    assert all(a["role"] == "img" and len(a["aria-label"]) > 20 for a in plots)
    assert [a["scope"] for tag, a in tags if tag == "th"].count("row") == 2


def test_empty_parts_leave_no_heading_behind():
    html = render_page(PageData("Title", "Summary."))
    Outline(html)
    assert "<section>" not in html and 'class="notice"' not in html


def drawn(svg):
    root = ElementTree.fromstring(svg)
    width, height = map(float, root.get("viewBox").split()[2:])
    return root, width, height


@pytest.mark.parametrize("width", [350, 700, 1150])
def test_charts_stay_inside_their_frame_at_every_width(width):
    scores = [Score(p.label, p.accuracy, p.error) for p in SIZES]
    for svg in (
        size_chart(SIZES, ("teacher", "distilled", "int8"), width),
        score_chart(scores, width),
        line_chart(CURVES, width),
    ):
        root, w, h = drawn(svg)
        for circle in root.iter(f"{SVG}circle"):
            assert 0 <= float(circle.get("cx")) <= w and 0 <= float(circle.get("cy")) <= h
        for text in root.iter(f"{SVG}text"):
            assert 0 <= float(text.get("x")) <= w and 0 <= float(text.get("y")) <= h


def test_size_chart_is_logarithmic_and_names_every_model():
    root, *_ = drawn(size_chart([SizePoint(str(b), b, 90) for b in (10_000, 100_000, 1_000_000)]))
    xs = [float(c.get("cx")) for c in root.iter(f"{SVG}circle")]
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.2)
    texts = [t.text for t in root.iter(f"{SVG}text")]
    assert {"10000", "100000", "1000000"} <= set(texts)


def test_of_very_many_points_some_are_named_and_all_can_be_pointed_at():
    points = [SizePoint(f"model_{i:02}_recovered", 1e5 + 300 * i, 90 + 0.01 * i) for i in range(30)]
    root, *_ = drawn(size_chart(points, chain=("model_29_recovered",), width=575))
    labels = [t for t in root.iter(f"{SVG}text") if (t.text or "").startswith("model")]
    assert 1 < len(labels) < 30 and "model_29_recovered" in {t.text for t in labels}
    titles = {t.text for t in root.iter(f"{SVG}title")}
    assert {point.label for point in points} <= titles
    boxes = []
    for label in labels:
        width, x, y = text_width(label.text), float(label.get("x")), float(label.get("y"))
        left = x - {"middle": width / 2, "end": width}.get(label.get("text-anchor"), 0)
        boxes.append((left, y, left + width))
    for i, (left, y, right) in enumerate(boxes):
        for other_left, other_y, other_right in boxes[:i]:
            assert abs(y - other_y) >= 13.9 or right <= other_left or other_right <= left


def test_labels_of_crowded_points_do_not_cover_each_other():
    points = [SizePoint(f"model {i}", 100_000 * (1 + 0.1 * i), 90 + 0.1 * i) for i in range(5)]
    root, *_ = drawn(size_chart(points, width=700))
    labels = [t for t in root.iter(f"{SVG}text") if (t.text or "").startswith("model")]
    places = {(t.get("x"), t.get("y")) for t in labels}
    assert len(labels) == len(places) == 5


@pytest.mark.parametrize(
    "points",
    [((0, 1.0),), ((0, 0.0), (1, 0.0)), ((0, -1.0), (1, 1.0)), tuple((i, 1e-6) for i in range(9))],
)
def test_odd_curves_are_drawn_without_a_number_that_is_none(points):
    for log_y in (False, True):
        svg = line_chart(Curves("t", (Series("s", points),), log_y=log_y))
        drawn(svg)
        assert "nan" not in svg.replace("nance", "") and "inf" not in svg


def test_metrics_become_charts_and_a_total_of_one_loss_is_not_drawn_twice():
    lines = [
        {"step": i, "loss/total": 1.0 - i, "loss/cosine": 1.0 - i, "optim/lr": 0.1, "epoch": 0}
        for i in range(3)
    ]
    lines[1]["loss/total"] = lines[1]["loss/cosine"] = None
    losses, rate = curves_of(lines, "distill")
    assert losses.title == "distill: losses"
    assert losses.series == (Series("total", ((0, 1.0), (2, -1.0))),)
    assert not rate.smooth
    assert curves_of([], "distill") == []


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=60), st.floats(1, 30))
def test_smoothing_keeps_ends_and_range(values, window):
    soft = smoothed(values, window)
    assert len(soft) == len(values)
    assert soft[0] == pytest.approx(values[0], abs=1e-6)
    assert soft[-1] == pytest.approx(values[-1], abs=1e-6)
    assert min(values) - 1e-6 <= min(soft) and max(soft) <= max(values) + 1e-6


def test_smoothing_does_not_lag_behind_a_straight_line():
    line = [2.0 * i for i in range(50)]
    assert smoothed(line, 9) == pytest.approx(line)


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=3000))
def test_thinning_keeps_the_extremes_and_the_order(values):
    points = list(enumerate(values))
    kept = thinned(points)
    assert len(kept) <= MOST_POINTS and kept == sorted(kept) and set(kept) <= set(points)
    assert max(v for _, v in kept) == max(values) and min(v for _, v in kept) == min(values)


def test_thinning_keeps_the_extremes_of_every_stretch():
    falling = [(float(i), float(-i)) for i in range(2 * MOST_POINTS)]
    ends = [falling[i + j] for i in range(0, 2 * MOST_POINTS, 4) for j in (0, 3)]
    assert thinned(falling) == ends
    assert thinned([(x, 1.0) for x, _ in falling]) == [(x, 1.0) for x, _ in falling[::4]]
    assert thinned(falling[:MOST_POINTS]) == falling[:MOST_POINTS]


@given(st.floats(-1e6, 1e6), st.floats(1e-4, 1e6))
def test_ticks_are_few_within_the_range_and_evenly_spaced(low, span):
    ticks = nice_ticks(low, low + span)
    slack = 1e-6 * max(1.0, abs(low), span)
    assert 1 <= len(ticks) <= 7
    assert low - slack <= ticks[0] and ticks[-1] <= low + span + slack
    steps = np.diff(ticks)
    assert np.allclose(steps, steps[:1], rtol=1e-3, atol=slack)


@given(st.floats(1, 1e9), st.floats(1.05, 1e6))
def test_logarithmic_ticks_lie_within_the_range(low, factor):
    ticks = log_ticks(low, low * factor)
    assert ticks == sorted(ticks)
    assert all(low * 0.999 <= t <= low * factor * 1.001 for t in ticks)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (1, 1000, [1, 10, 100, 1000]),
        (10, 200, [10, 30, 100]),
        (10, 60, [10, 20, 50]),
        (2, 5, [2, 3, 4, 5]),
        (1.1, 1.4, [1.1, 1.2, 1.3, 1.4]),
    ],
)
def test_a_short_logarithmic_axis_has_ticks_between_powers_of_ten(low, high, ticks):
    assert log_ticks(low, high) == pytest.approx(ticks)


def test_a_curve_without_points_stays_so():
    assert smoothed([], 5) == []


@pytest.mark.parametrize(
    ("value", "shown"), [(0, "0"), (0.25, "0.25"), (1500, "1.5k"), (1e-5, "1e-5"), (3e7, "3e7")]
)
def test_tick_labels_are_short(value, shown):
    assert tick_label(value) == shown


def test_grid_places_pictures_and_frames_those_that_are_shared():
    white = np.full((4, 4, 3), 255, np.uint8)
    sheet_HWC = image_grid([[PICTURE, white], [white, PICTURE]], [[False, True], [False, False]])
    assert sheet_HWC.shape == (2 * CELL + GAP, 2 * CELL + GAP, 4)
    assert tuple(sheet_HWC[0, CELL + GAP, :3]) == SHARED_RGB
    assert tuple(sheet_HWC[CELL + GAP, 0]) == (255, 255, 255, 255)
    assert sheet_HWC[0, CELL, 3] == 0  # the gap is transparent
    assert tuple(sheet_HWC[0, 0, :3]) == tuple(PICTURE[0, 0])


def test_picture_survives_its_data_uri():
    head, content = png_uri(PICTURE).split(",")
    assert head == "data:image/png;base64"
    assert np.array_equal(np.array(Image.open(io.BytesIO(base64.b64decode(content)))), PICTURE)


def test_number_in_a_chart_description_is_the_number_given():
    svg = score_chart([Score("int8", 94.6, 0.3)])
    assert "int8 94.60 ± 0.30" in drawn(svg)[0].get("aria-label")
    assert not math.isnan(drawn(svg)[1])


def test_only_the_students_neighbors_that_the_teacher_has_too_are_framed():
    image = np.zeros((4, 4, 3), np.uint8)
    row = [image, image]
    html = render_page(
        PageData("t", "s", neighbors=Neighbors([image], [row], [row], [[True, False]], "caption"))
    )
    framed = []
    for content in re.findall(r'src="data:image/png;base64,([^"]+)"', html):
        sheet_HWC = np.array(Image.open(io.BytesIO(base64.b64decode(content))))
        corners = sheet_HWC[0, :: CELL + GAP, :3]
        framed.append([tuple(corner) == SHARED_RGB for corner in corners])
    assert framed == [[False, False, False], [False, True, False]]  # teacher, student
