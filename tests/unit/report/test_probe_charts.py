"""Confusion matrices and maps of embeddings as SVG, and the projection behind the maps."""

import base64
import io
import re
import sys
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.decomposition import PCA

from ssdistill.errors import UserError
from ssdistill.label_free.projection import check_method, project, turned
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


def test_the_plane_is_that_of_scikit_learns_pca():
    z_ND = torch.randn(200, 12, generator=torch.Generator().manual_seed(0))
    z_ND[:, 3] += 4 * (torch.arange(200) % 2)
    unit_ND = torch.nn.functional.normalize(z_ND.double(), dim=1).numpy()
    pca = PCA(2).fit(unit_ND)
    expected_N2 = pca.transform(unit_ND)
    found_N2, plane = project(z_ND)
    signs = np.sign((found_N2 * expected_N2).sum(0))
    assert np.allclose(found_N2, expected_N2 * signs, atol=1e-9)
    assert f"{100 * pca.explained_variance_ratio_.sum():.0f} %" in plane


@pytest.mark.parametrize("shape", [(2, 5), (7, 1), (3, 2)])
def test_few_images_or_dimensions_have_a_plane_too(shape):
    found_N2, _ = project(torch.rand(shape, generator=torch.Generator().manual_seed(0)))
    assert found_N2.shape == (shape[0], 2) and np.isfinite(found_N2).all()


def test_a_map_is_turned_to_lie_as_another_does():
    rng = np.random.default_rng(0)
    points_N2 = rng.normal(size=(50, 2))
    angle = 1.1
    mirror = np.array([[1, 0], [0, -1]])
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    assert np.allclose(turned(points_N2 @ rotation @ mirror, points_N2), points_N2)
    assert np.allclose(turned(points_N2, points_N2), points_N2)


@pytest.mark.parametrize("seed", range(12))
def test_the_largest_component_of_an_axis_is_positive(seed):
    z_ND = torch.randn(9, 5, generator=torch.Generator().manual_seed(seed))
    points_N2, _ = project(z_ND)
    unit_ND = torch.nn.functional.normalize(z_ND.double(), dim=1)
    axes_D2 = np.linalg.pinv((unit_ND - unit_ND.mean(0)).numpy()) @ points_N2
    assert all(axis_D[np.abs(axis_D).argmax()] > 0 for axis_D in axes_D2.T)


def test_equal_embeddings_vary_by_nothing():
    points_N2, plane = project(torch.ones(5, 3))
    assert plane == "first two principal components: 0 % of the variance"
    assert not points_N2.any()


def test_a_map_by_umap_is_centered_and_made_of_directions(monkeypatch):
    class Reducer:
        def __init__(self, n_components, metric, random_state):
            assert (n_components, metric) == (2, "cosine")

        def fit_transform(self, unit_ND):
            assert np.allclose(np.linalg.norm(unit_ND, axis=1), 1)
            return unit_ND[:, :2] + 5

    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=Reducer))
    points_N2, plane = project(torch.rand(9, 4), "umap")
    assert np.allclose(points_N2.mean(0), 0) and points_N2.std() > 0
    assert plane == "UMAP of cosine distances"


def test_umap_is_asked_for_by_what_installs_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'ssdistill\[umap\]'"):
        check_method("umap")
    check_method("pca")


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
