import numpy as np
import pytest
import torch

from ssdistill.distill import neighbors
from ssdistill.distill.neighbors import nearest_neighbors
from ssdistill.errors import UserError


def embeddings(count=90, dim=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scale = 10 ** torch.rand(count, 1, generator=generator)
    return scale * torch.randn(count, dim, generator=generator)


def brute_force(z_ND, k):
    """By distances between all pairs of vectors of length 1, in double precision."""
    z_ND = z_ND.double().numpy()
    z_ND /= np.linalg.norm(z_ND, axis=1, keepdims=True)
    distance_NN = np.linalg.norm(z_ND[:, None] - z_ND[None], axis=2)
    np.fill_diagonal(distance_NN, np.inf)
    return np.argsort(distance_NN, axis=1, kind="stable")[:, :k]


@pytest.fixture(params=[(1024, 16384), (7, 16384), (1024, 33), (64, 64), (7, 3), (1, 1)])
def blocks(request, monkeypatch):
    queries, bank = request.param
    monkeypatch.setattr(neighbors, "QUERIES", queries)
    monkeypatch.setattr(neighbors, "BANK", bank)


@pytest.mark.parametrize("k", [1, 5])
def test_neighbors_are_those_of_brute_force(blocks, k):
    z_ND = embeddings()
    found = nearest_neighbors(z_ND, k)
    assert found.dtype == np.int64 and found.shape == (90, k)
    assert np.array_equal(found, brute_force(z_ND, k))


def test_all_the_others_are_found_where_there_are_no_more(blocks):
    z_ND = embeddings(6)
    assert np.array_equal(nearest_neighbors(z_ND), brute_force(z_ND, 5))


def test_length_does_not_matter():
    z_ND = torch.tensor([[1.0, 0.0], [100.0, 1.0], [0.9, 0.5], [0.0, 1.0]])
    assert nearest_neighbors(z_ND, 1)[:, 0].tolist() == [1, 0, 1, 2]


@pytest.mark.parametrize("k", [1, 2, 5])
def test_of_equals_the_lower_number_comes_first_and_no_image_is_its_own(blocks, k):
    # Whole numbers and unit axes: equal similarities are equal to the last bit.
    axes = torch.eye(4).repeat(30, 1)
    found = nearest_neighbors(axes, k)
    for row in range(120):
        same = [other for other in range(row % 4, 120, 4) if other != row]
        assert found[row].tolist() == same[:k]


def test_equals_beyond_the_nearest_are_ordered_too(blocks):
    z_ND = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]] + [[0.0, 1.0, 0.0]] * 8)
    found = nearest_neighbors(z_ND, 4)
    assert found[0].tolist() == [1, 2, 3, 4]
    assert found[1].tolist() == [0, 2, 3, 4]
    assert found[5].tolist() == [2, 3, 4, 6]


def test_a_zero_vector_has_neighbors_and_disturbs_nobodys():
    z_ND = embeddings(30)
    z_ND[7] = 0
    found = nearest_neighbors(z_ND, 3)
    assert found[7].tolist() == [0, 1, 2]
    rest = [i for i in range(30) if i != 7]
    assert np.array_equal(found[rest], np.array(rest)[brute_force(z_ND[rest], 3)])


def test_what_is_held_at_a_time_does_not_grow_with_the_number_of_images(monkeypatch):
    monkeypatch.setattr(neighbors, "QUERIES", 16)
    monkeypatch.setattr(neighbors, "BANK", 32)
    sizes, plain = [], neighbors._largest

    def watched(x_QM, k):
        sizes.append(tuple(x_QM.shape))
        return plain(x_QM, k)

    monkeypatch.setattr(neighbors, "_largest", watched)
    nearest_neighbors(embeddings(100))
    assert max(rows for rows, _ in sizes) == 16
    assert max(columns for _, columns in sizes) == 32
    assert len(sizes) == 7 * 4


@pytest.mark.parametrize("count", [1, 5])
def test_too_few_images_are_refused(count):
    with pytest.raises(UserError, match=f"k=5 neighbors requested, but only {count} images"):
        nearest_neighbors(embeddings(count))


def test_embeddings_that_are_not_finite_are_refused():
    z_ND = embeddings(20)
    z_ND[3, 1] = float("nan")
    with pytest.raises(UserError, match="embeddings have NaN or infinite values in 1 of 20 rows"):
        nearest_neighbors(z_ND)
