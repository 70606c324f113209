"""Projections of embeddings to the plane of a map."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ssdistill.errors import UserError
from ssdistill.label_free.projection import check_method, project, turned


def test_the_plane_is_that_of_the_largest_singular_values():
    z_ND = torch.randn(200, 12, generator=torch.Generator().manual_seed(0))
    z_ND[:, 3] += 4 * (torch.arange(200) % 2)
    unit_ND = torch.nn.functional.normalize(z_ND.double(), dim=1).numpy()
    left_ND, values_D, _ = np.linalg.svd(unit_ND - unit_ND.mean(0), full_matrices=False)
    expected_N2 = left_ND[:, :2] * values_D[:2]
    found_N2, plane = project(z_ND)
    signs = np.sign((found_N2 * expected_N2).sum(0))
    assert np.allclose(found_N2, expected_N2 * signs, atol=1e-9)
    percent = 100 * (values_D[:2] ** 2).sum() / (values_D**2).sum()
    assert plane == f"first two principal components: {percent:.0f} % of the variance"


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
