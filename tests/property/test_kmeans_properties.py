"""Properties of spherical k-means and its prototypes."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from prototype_inputs import FEW, SEEDS, random
from sklearn.cluster import KMeans

from ssdistill.losses.base import prototypes
from ssdistill.losses.base.prototypes import Prototypes, spherical_kmeans


@FEW
@given(SEEDS, st.integers(2, 12))
def test_separate_clusters_get_one_prototype_each(seed, count):
    center_KD = torch.linalg.qr(random(32, count, seed=seed)).Q.T
    x_ND = center_KD.repeat(20, 1) + 2e-4 * random(20 * count, 32, seed=seed + 1)
    found_KD = spherical_kmeans(5 * x_ND, count)
    assert (found_KD @ center_KD.T).max(0).values.min() > 0.99


def test_prototypes_explain_the_rows_as_well_as_a_library_does():
    x_ND = F.normalize(random(600, 16, seed=0) + 2 * random(6, 16, seed=1).repeat(100, 1), dim=1)
    ours = (x_ND @ spherical_kmeans(x_ND, 24).T).max(1).values.mean()
    center_KD = torch.from_numpy(
        KMeans(24, n_init=3, random_state=0).fit(x_ND.numpy()).cluster_centers_
    )
    theirs = (x_ND @ F.normalize(center_KD, dim=1).T).max(1).values.mean()
    assert ours > theirs - 0.01


def test_the_same_rows_give_the_same_prototypes_and_leave_the_generator_alone():
    x_ND = random(200, 8, seed=0)
    state = torch.get_rng_state()
    assert torch.equal(spherical_kmeans(x_ND, 16), spherical_kmeans(x_ND, 16))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("distinct", [1, 3, 40])
def test_no_prototype_is_left_without_a_direction(distinct):
    x_ND = random(distinct, 8, seed=0).repeat(40 // distinct + 1, 1)[:40]
    found_KD = spherical_kmeans(x_ND, 40)
    assert torch.allclose(found_KD.norm(dim=1), torch.ones(40))
    assert (found_KD @ F.normalize(x_ND, dim=1).T).max(0).values.min() > 0.9999


def test_an_empty_cluster_moves_to_the_worst_explained_row():
    # The sample for starting points misses the two odd rows, so that two clusters are empty.
    x_ND = torch.cat([torch.eye(8)[:1].repeat(2000, 1), torch.eye(8)[1:3]])
    found_KD = spherical_kmeans(x_ND, 3)
    assert torch.allclose((found_KD @ torch.eye(8)[:3].T).max(0).values, torch.ones(3))


def test_rows_that_are_all_alike_give_finite_logits():
    prototypes = Prototypes(4, 8)
    prototypes.fit(torch.ones(20, 8))
    assert torch.isfinite(prototypes(random(3, 8, seed=0))).all()


@pytest.mark.parametrize("change", [lambda x: 4 * x, lambda x: x + 7.0], ids=["scale", "offset"])
def test_prototype_logits_know_neither_scale_nor_offset_of_the_teacher(change):
    x_ND = random(120, 16, seed=0)
    one, other = (Prototypes(8, 16) for _ in range(2))
    one.fit(x_ND)
    other.fit(change(x_ND))
    t_BD = random(5, 16, seed=1)
    assert torch.allclose(one(t_BD), other(change(t_BD)), atol=1e-3)
    assert not torch.allclose(one(t_BD), one(-t_BD), atol=1.0)


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_is_drawn_on_a_terminal_alone(terminal, monkeypatch):
    drawn = []

    def track(iterations, *_, disable, **__):
        drawn.append(not disable)
        return iterations

    monkeypatch.setattr(prototypes, "track", track)
    monkeypatch.setattr(prototypes.sys.stderr, "isatty", lambda: terminal, raising=False)
    spherical_kmeans(torch.eye(4), 2)
    assert drawn == [terminal]
