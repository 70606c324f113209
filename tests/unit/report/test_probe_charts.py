"""Confusion matrices and maps of embeddings as SVG."""

import base64
import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from ssdistill.report.charts.confusion import RIGHT_RGB, WRONG_RGB, confusion_svg
from ssdistill.report.charts.embedding_map import LIGHT, _mark, _names_inside, map_svg
from ssdistill.report.charts.legend import Entry, legend

SVG = "{http://www.w3.org/2000/svg}"


def confusion(size, seed=0):
    rng = np.random.default_rng(seed)
    found_KK = rng.poisson(0.7, (size, size))
    found_KK[range(size), range(size)] = rng.integers(20, 60, size)
    return found_KK


def texts(root):
    return [element.text for element in root.iter(f"{SVG}text")]


def inside(root, slack=3):
    """Whether every rectangle and text starts within the view box."""
    width, height = map(float, root.get("viewBox").split()[2:])
    for element in (*root.iter(f"{SVG}rect"), *root.iter(f"{SVG}text")):
        x, y = float(element.get("x")), float(element.get("y"))
        wide, tall = float(element.get("width", 0)), float(element.get("height", 0))
        if x < -slack or y < 0 or x + wide > width + slack or y + tall > height + slack:
            return False
    return True


@pytest.mark.parametrize("size", [2, 3, 10, 20])
@pytest.mark.parametrize("width", [350, 760])
def test_every_cell_with_images_has_its_number(size, width):
    found_KK = confusion(size)
    names = [f"class {k}" for k in range(size)]
    root = ElementTree.fromstring(confusion_svg(found_KK, names, "c", width))
    numbers = sorted(int(t) for t in texts(root) if t and t.isdigit())
    assert numbers == sorted(found_KK[found_KK > 0].tolist())
    assert all(texts(root).count(name) == 2 for name in names)
    recall = 100 * found_KK[0, 0] / found_KK[0].sum()
    assert f"{recall:.0f} %" in texts(root)
    assert inside(root)


def test_a_class_without_images_has_no_recall_and_names_are_escaped():
    found_KK = np.array([[3, 1], [0, 0]])
    root = ElementTree.fromstring(confusion_svg(found_KK, ["a<b>&", "x" * 40], "t"))
    shown = texts(root)
    assert "–" in shown and "a<b>&" in shown and "x" * 15 + "…" in shown
    assert "a<b>& as " + "x" * 40 + " 1" in root.find(f"{SVG}desc").text


def test_many_classes_are_one_picture_in_which_mistakes_are_orange():
    found_KK = confusion(60)
    found_KK[3, 7], found_KK[5, 9] = 40, 0
    drawn = confusion_svg(found_KK, [str(k) for k in range(60)], "many")
    root = ElementTree.fromstring(drawn)
    assert not [t for t in texts(root) if t and t.isdigit()] and inside(root)
    (uri,) = re.findall(r"data:image/png;base64,([^\"]+)", drawn)
    picture = np.array(Image.open(io.BytesIO(base64.b64decode(uri))))
    assert picture.shape == (60, 60, 4)
    assert tuple(picture[3, 7, :3]) == WRONG_RGB and tuple(picture[4, 4, :3]) == RIGHT_RGB
    assert picture[5, 9, 3] == 0 and picture[3, 7, 3] > 100
    assert "3 as 7 40" in root.find(f"{SVG}desc").text


def dots(root):
    """Places of all dots, by the style of their path."""
    found = {}
    for path in root.iter(f"{SVG}path"):
        places = re.findall(r"M([\d.]+),([\d.]+)h\.01", path.get("d"))
        if places:
            found[path.get("style")] = np.array(places, dtype=float)
    return found


@pytest.mark.parametrize("count", [1, 2, 12, 20])
def test_every_image_is_a_dot_of_its_class_and_distances_are_true(count):
    rng = np.random.default_rng(0)
    points_N2, labels_N = rng.normal(size=(300, 2)) * (3, 1), np.arange(300) % count
    names = [f"c{k}" for k in range(count)]
    root = ElementTree.fromstring(map_svg(points_N2, labels_N, names, "m", "a plane", 400))
    by_class = list(dots(root).values())
    assert [len(places) for places in by_class] == np.bincount(labels_N).tolist()
    assert len(dots(root)) == count  # a color and shape of its own for each
    drawn_N2, order = np.concatenate(by_class), np.argsort(labels_N, kind="stable")
    true_N = np.linalg.norm(points_N2[order] - points_N2[order[0]], axis=1)
    shown_N = np.linalg.norm(drawn_N2 - drawn_N2[0], axis=1)
    scale = shown_N.max() / true_N[shown_N.argmax()]
    assert np.allclose(shown_N, scale * true_N, atol=0.3)
    assert set(names) <= set(texts(root)) and "a plane" in texts(root) and inside(root)
    assert (drawn_N2 >= 0).all() and (drawn_N2[:, 0] <= 400).all()


def test_without_labels_or_with_too_many_classes_nothing_is_named():
    points_N2 = np.random.default_rng(0).normal(size=(90, 2))
    bare = ElementTree.fromstring(map_svg(points_N2, None, (), "m"))
    assert len(dots(bare)) == 1 and texts(bare) == ["m"]
    labels_N, names = np.arange(90) % 45, [f"c{k}" for k in range(45)]
    crowded = ElementTree.fromstring(map_svg(points_N2, labels_N, names, "m"))
    assert not set(names) & set(texts(crowded))


def test_equal_points_can_be_drawn():
    root = ElementTree.fromstring(map_svg(np.zeros((5, 2)), np.zeros(5, int), ["a"], "m"))
    (places,) = dots(root).values()
    assert np.isfinite(places).all()


@pytest.mark.parametrize(("below", "shown"), [(100, "AB"), (18, "AB"), (12, "A")])
def test_a_name_stands_where_no_other_does(below, shown):
    """The class of more dots first, whichever stands above."""
    for top, bottom in (("A", "B"), ("B", "A")):
        rows = {"A": 3, "B": 2}
        places = {top: [40.0, 60.0], bottom: [40.0, 60.0 + below]}
        groups = [(i, np.tile(places[name], (rows[name], 1))) for i, name in enumerate("AB")]
        drawn = re.findall(">(.)</text>", _names_inside(groups, "AB", 300))
        assert "".join(drawn) == shown


def test_in_a_legend_marks_are_round_until_all_colors_are_used():
    numbers = range(2 * len(LIGHT))
    text, _ = legend([Entry(str(number), "red", mark=_mark(number)) for number in numbers], 500)
    assert re.findall(r'rx="(\d)"', text) == ["5"] * len(LIGHT) + ["0"] * len(LIGHT)
