"""Every text of every chart lies inside the chart, whatever numbers and names it shows."""

import math
import re
import unicodedata
from xml.etree import ElementTree

import numpy as np
import pytest

from ssdistill.measure.pareto import Front, FrontPoint
from ssdistill.report.charts.axes import Scale, nice_ticks, spanning, tick_labels
from ssdistill.report.charts.comparisons import (
    LatencyPoint,
    Score,
    SizePoint,
    latency_chart,
    score_chart,
    size_chart,
)
from ssdistill.report.charts.confusion import confusion_svg
from ssdistill.report.charts.embedding_map import map_svg
from ssdistill.report.charts.lettering import shortened, text_width
from ssdistill.report.charts.pareto import front_svg
from ssdistill.report.charts.plots import Curves, Series, line_chart

SVG = "{http://www.w3.org/2000/svg}"
NUMBERS = {
    "tiny": (1e-9, 3e-9),
    "large": (123456.7, 123999.9),
    "close": (123456.7, 123456.70001),
    "equal": (52.5, 52.5),
    "negative": (-0.001, 0.0),
    "halves": (50.1, 60.2),
    "wide": (1e-9, 1e9),
    "same": (1 / 3, 1 / 3 + 1e-16),
}
NAMES = {
    "short": ("a", "b"),
    "long": ("prune_rank_unfitted_recovered" * 3, "prune_rank_unfitted_factorized" * 3),
    "capitals": ("WWWWWWWWWWWWMMMM" * 2, "MOBILENETV3"),
    "wide": ("模型量化模型量化模型量化模型量化模型", "größer <b>&"),
}


def width_of(content, size):
    """An estimate that shares nothing with the code: wider than Arial and Roboto set text."""
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in content)
    capitals = sum(letter.isupper() for letter in content)
    return size * (0.6 * (len(content) - wide - capitals) + 0.75 * capitals + 1.0 * wide)


def outside(svg):
    """Texts that leave the image, with their corners."""
    root = ElementTree.fromstring(svg)
    width, height = map(float, root.get("viewBox").split()[2:])
    found = []
    for element in root.iter(f"{SVG}text"):
        content = "".join(element.itertext())
        for x, y in corners(element, content):
            if not (-0.5 <= x <= width + 0.5 and -0.5 <= y <= height + 0.5):
                found.append((content, round(x, 1), round(y, 1), width, height))
    return found


def corners(element, content):
    style = element.get("style") or ""
    sizes = re.findall(r"font-size:([\d.]+)px", style)
    size = float(sizes[0]) if sizes else 13.5 if element.get("class") == "title" else 12.0
    x, y, wide = float(element.get("x")), float(element.get("y")), width_of(content, size)
    wide += sum(float(part.get("dx", 0)) for part in element)
    left = x - {"middle": wide / 2, "end": wide}.get(element.get("text-anchor"), 0)
    places = [(left, y), (left + wide, y), (left, y - 0.75 * size), (left + wide, y - 0.75 * size)]
    turn = re.match(r"rotate\((-?[\d.]+) ([\d.]+) ([\d.]+)\)", element.get("transform") or "")
    if not turn:
        return places
    angle, cx, cy = (float(part) for part in turn.groups())
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    return [
        (cx + (a - cx) * cos - (b - cy) * sin, cy + (a - cx) * sin + (b - cy) * cos)
        for a, b in places
    ]


def charts(names, numbers, width):
    low, high = numbers
    costs = (max(abs(low), 1e-9), max(abs(high), 2e-9))
    spread = high - low or 1.0
    steps = ((0, low), (50, high), (123456, low))
    series = tuple(Series(name, steps) for name in names)
    front = tuple(
        FrontPoint(0.5, c, 0.1, abs(v), c, abs(v)) for c, v in zip(costs, numbers, strict=True)
    )
    yield size_chart(
        [SizePoint(n, c, v, spread) for n, c, v in zip(names, costs, numbers, strict=True)],
        names,
        width,
    )
    yield latency_chart(
        [LatencyPoint(n, c, v) for n, c, v in zip(names, costs, numbers, strict=True)], (), width
    )
    yield score_chart(
        [Score(n, v, spread, (low, high)) for n, v in zip(names, numbers, strict=True)],
        width,
        names[0],
    )
    for log in (False, True):
        yield line_chart(Curves(f"{names[0]}: losses", series, names[1], names[0], log), width)
    for unit in ("bytes", "macs"):
        yield front_svg(Front(names[0], unit, 1.0, "cosine", front), width)


@pytest.mark.parametrize("width", [350, 575, 1150])
@pytest.mark.parametrize("names", NAMES.values(), ids=list(NAMES))
@pytest.mark.parametrize("numbers", NUMBERS.values(), ids=list(NUMBERS))
def test_no_text_leaves_a_chart_of_numbers(numbers, names, width):
    for svg in charts(names, numbers, width):
        assert outside(svg) == []
        assert "nan" not in re.sub(r">[^<]*<", "", svg)


@pytest.mark.parametrize("width", [350, 575, 760])
@pytest.mark.parametrize("names", NAMES.values(), ids=list(NAMES))
@pytest.mark.parametrize("classes", [2, 12, 20, 40])
def test_no_text_leaves_a_confusion_matrix_or_a_map(names, classes, width):
    labels = [f"{names[k % 2]}{k}" for k in range(classes)]
    confusion_KK = np.full((classes, classes), 12345)
    assert outside(confusion_svg(confusion_KK, labels, f"{names[0]}, k-NN", width)) == []
    points_N2 = np.random.default_rng(0).normal(size=(200, 2))
    plane = "first two principal components: 100 % of the variance"
    labels_N = np.arange(200) % classes
    assert outside(map_svg(points_N2, labels_N, labels, names[0], plane, width)) == []


def test_the_margin_follows_the_ticks_that_are_drawn():
    svg = line_chart(Curves("t", (Series("s", ((0, 50.0), (1, 60.0))),)), 400)
    shown = [e for e in ElementTree.fromstring(svg).iter(f"{SVG}text") if e.text == "52.5"]
    assert shown and min(x for x, _ in corners(shown[0], "52.5")) >= 0


def test_what_is_shortened_is_whole_where_one_points_at_it():
    names = NAMES["long"]
    for svg in charts(names, NUMBERS["halves"], 350):
        titles = [e.text for e in ElementTree.fromstring(svg).iter(f"{SVG}title")]
        assert any(names[0] in title for title in titles)


def test_numbers_are_never_shortened():
    for numbers in NUMBERS.values():
        for svg in charts(NAMES["long"], numbers, 350):
            texts = [e.text or "" for e in ElementTree.fromstring(svg).iter(f"{SVG}text")]
            texts += [e.text or "" for e in ElementTree.fromstring(svg).iter(f"{SVG}tspan")]
            assert [t for t in texts if re.search(r"\d…|…\d", t)] == []


def test_a_name_keeps_both_ends():
    short = shortened("prune_rank_unfitted_recovered", 120)
    assert re.fullmatch(r"prune.*….*vered", short) and text_width(short) <= 120
    assert shortened("int8", 120) == "int8"
    assert shortened("int8", 1) == ""


@pytest.mark.parametrize("numbers", NUMBERS.values(), ids=list(NUMBERS))
def test_different_ticks_have_different_labels(numbers):
    scale = spanning(list(numbers), 0, 300)
    ticks = scale.ticks()
    assert len(ticks) >= 2
    assert len(set(tick_labels(ticks))) == len(ticks)
    assert all(0 <= scale(tick) <= 300.001 or scale(tick) == pytest.approx(0) for tick in ticks)


def test_without_a_margin_a_scale_ends_at_its_values():
    scale = spanning([0.0, 2000.0], 10, 300, margin=0.0)
    assert (scale(0.0), scale(2000.0)) == (10, 300)
    single = spanning([5.0, 5.0], 10, 300, margin=0.0)
    assert single(5.0) == pytest.approx(155)


def test_ticks_of_tiny_ranges_are_not_rounded_away():
    ticks = nice_ticks(1e-14, 9e-14)
    assert len(ticks) >= 3 and all(tick > 0 for tick in ticks)
    assert isinstance(spanning([1e-14, 9e-14], 0, 1), Scale)


def test_a_training_that_diverged_is_drawn_as_far_as_it_has_values():
    nan, inf = float("nan"), float("inf")
    svg = line_chart(Curves("t", (Series("s", ((0, 1.0), (1, 2.0), (2, nan), (3, inf))),)))
    assert outside(svg) == [] and "nan" not in re.sub(r">[^<]*<", "", svg)
    ElementTree.fromstring(line_chart(Curves("t", (Series("s", ((0, nan),)),))))
