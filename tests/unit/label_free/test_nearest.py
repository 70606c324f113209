import numpy as np
import pytest
import torch

from ssdistill.errors import UserError
from ssdistill.label_free import candidates, nearest, vectors
from ssdistill.label_free.candidates import find_candidates
from ssdistill.label_free.nearest import nearest_others, neighbors


def groups(count, seed=0):
    """Vectors of six overlapping groups."""
    centers_KD = np.random.default_rng(0).normal(size=(6, 16))
    rng = np.random.default_rng(seed)
    z_ND = centers_KD[rng.integers(0, 6, count)] + 1.2 * rng.normal(size=(count, 16))
    return z_ND.astype(np.float32)


@pytest.fixture(params=["as it is", "no bfloat16", "low precision"])
def products(request, monkeypatch):
    """Ways in which matrix products are made; none may change an answer."""
    if request.param == "low precision":
        monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "medium")
    if request.param != "as it is":
        monkeypatch.setattr(candidates, "has_fast_bf16", lambda device: False)


def force_bfloat16(monkeypatch):
    monkeypatch.setattr(candidates, "has_fast_bf16", lambda device: True)


def brute_force(query_ND, bank_MD, k, distance="cosine"):
    """Closeness in float64, rounded to float32; of equals the smaller index."""
    q_ND, b_MD = (torch.as_tensor(z).float() for z in (query_ND, bank_MD))
    if distance == "cosine":
        q_ND, b_MD = (torch.nn.functional.normalize(z, dim=1) for z in (q_ND, b_MD))
        close_NM = (q_ND.double()[:, None] * b_MD.double()[None]).sum(2).float()
    else:
        close_NM = -(q_ND.double()[:, None] - b_MD.double()[None]).square().sum(2).sqrt().float()
    value_NM, index_NM = close_NM.sort(dim=1, descending=True, stable=True)
    return value_NM[:, :k], index_NM[:, :k]


def nearest_of(*args, **settings):
    return tuple(torch.cat(parts) for parts in zip(*neighbors(*args, **settings), strict=True))


def smaller_chunks(monkeypatch, queries, block, kept=0):
    monkeypatch.setattr(nearest, "QUERIES", queries)
    monkeypatch.setattr(vectors, "BLOCK", block)
    monkeypatch.setattr(vectors, "KEPT", kept)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("k", [1, 7, 60, 600])
def test_neighbors_are_those_of_brute_force(products, k, distance):
    query_ND, bank_MD = groups(300, seed=1), groups(600)
    value_Nk, index_Nk = nearest_of(query_ND, bank_MD, k, distance=distance)
    expected_value_Nk, expected_Nk = brute_force(query_ND, bank_MD, k, distance)
    assert torch.equal(index_Nk, expected_Nk)
    assert torch.allclose(value_Nk, expected_value_Nk, rtol=0, atol=2e-7)


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_chunks_and_digits_change_nothing(monkeypatch, seed, bfloat16):
    monkeypatch.setattr(candidates, "has_fast_bf16", lambda device: bfloat16)
    rng = np.random.default_rng(seed)
    # Few values and many copies: equal similarities everywhere.
    bank_MD = rng.integers(-1, 2, (rng.integers(150, 400), 5)).astype(np.float32)
    query_ND = rng.integers(-1, 2, (60, 5)).astype(np.float32)
    k = int(rng.integers(1, 100))
    expected = brute_force(query_ND, bank_MD, k)
    assert torch.equal(nearest_of(query_ND, bank_MD, k)[1], expected[1])
    for _ in range(4):
        smaller_chunks(monkeypatch, *rng.integers(1, 200, 2).tolist(), kept=rng.choice([0, 10**6]))
        value_Nk, index_Nk = nearest_of(query_ND, bank_MD, k)
        assert torch.equal(index_Nk, expected[1])
        assert torch.equal(value_Nk, expected[0])


def test_collapsed_features_are_told_apart_by_their_last_digits(monkeypatch):
    force_bfloat16(monkeypatch)
    rng = np.random.default_rng(0)
    bank_MD = (1 + 1e-6 * rng.normal(size=(300, 8))).astype(np.float32)
    expected = brute_force(bank_MD[:50], bank_MD, 9)
    assert torch.equal(nearest_of(bank_MD[:50], bank_MD, 9)[1], expected[1])


@pytest.mark.parametrize("loser", ["bank", "query"])
def test_what_bfloat16_loses_of_a_product_is_within_its_bound(loser):
    """Every digit that one side loses points along the other: the bound's worst case."""
    lost = 0.49 * 2**-11  # half a place of bfloat16 at 1.5 / 16
    part_D = torch.tensor([1.5 / 16 + lost] * 32 + [-1.5 / 16 + lost] * 32)
    lossy_D = torch.cat([part_D, (1 - part_D.square().sum()).sqrt()[None]])
    exact_D = torch.cat([torch.full((64,), 1 / 8), torch.zeros(1)])
    row_D, query_D = (lossy_D, exact_D) if loser == "bank" else (exact_D, lossy_D)
    bank = vectors.Vectors(torch.stack([row_D, -row_D]))
    value_BC, index_BC, error_B, _ = find_candidates(query_D[None], bank, 2, "bfloat16")
    away_C = (bank.take(index_BC[0]) @ query_D - value_BC[0]).abs()
    assert 64 / 8 * lost * 0.99 < away_C.max() <= error_B


def test_zero_vectors_are_equally_far_from_everything():
    bank_MD = torch.tensor([[0.0, 0], [1, 0], [0, 1], [-1, 0]])
    value_Nk, index_Nk = nearest_of(torch.tensor([[0.0, 0], [1, 0]]), bank_MD, 4)
    assert index_Nk.tolist() == [[0, 1, 2, 3], [1, 0, 2, 3]]
    assert value_Nk.tolist() == [[0, 0, 0, 0], [1, 0, 0, -1]]


@pytest.mark.parametrize("columns", [50, 1024, 1600, 1603])
def test_the_largest_of_groups_are_the_largest_of_all(columns):
    generator = torch.Generator().manual_seed(columns)
    # Few different values: most are equal to many others.
    for levels in (4, 1000):
        value_Bm = torch.randint(levels, (7, columns), generator=generator).bfloat16() / levels
        largest_Bk, column_Bk = candidates._largest(value_Bm, 20)
        assert torch.equal(largest_Bk, value_Bm.topk(20, dim=1).values)
        assert torch.equal(value_Bm.gather(1, column_Bk), largest_Bk)
        assert all(len(set(row)) == 20 for row in column_Bk.tolist())


def embeddings(count=90, dim=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scale = 10 ** torch.rand(count, 1, generator=generator)
    return scale * torch.randn(count, dim, generator=generator)


def brute_force_others(z_ND, k):
    """By distances between all pairs of vectors of length 1, in double precision."""
    z_ND = z_ND.double().numpy()
    z_ND /= np.linalg.norm(z_ND, axis=1, keepdims=True)
    distance_NN = np.linalg.norm(z_ND[:, None] - z_ND[None], axis=2)
    np.fill_diagonal(distance_NN, np.inf)
    return np.argsort(distance_NN, axis=1, kind="stable")[:, :k]


@pytest.fixture(params=[(1024, 16384), (7, 16384), (1024, 33), (64, 64), (7, 3), (1, 1)])
def blocks(request, monkeypatch):
    smaller_chunks(monkeypatch, *request.param)


@pytest.mark.parametrize("k", [1, 5])
def test_others_are_those_of_brute_force(blocks, k):
    z_ND = embeddings()
    index_NK = nearest_others(z_ND, k)
    assert index_NK.dtype == torch.int64 and index_NK.shape == (90, k)
    assert np.array_equal(index_NK, brute_force_others(z_ND, k))


def test_all_the_others_are_found_where_there_are_no_more(blocks):
    z_ND = embeddings(6)
    assert np.array_equal(nearest_others(z_ND, 5), brute_force_others(z_ND, 5))


def test_length_does_not_matter():
    z_ND = torch.tensor([[1.0, 0.0], [100.0, 1.0], [0.9, 0.5], [0.0, 1.0]])
    assert nearest_others(z_ND, 1)[:, 0].tolist() == [1, 0, 1, 2]


@pytest.mark.parametrize("k", [1, 2, 5])
def test_of_equals_the_lower_number_comes_first_and_no_image_is_its_own(blocks, k):
    # Whole numbers and unit axes: equal similarities are equal to the last bit.
    axes = torch.eye(4).repeat(12, 1)
    index_NK = nearest_others(axes, k)
    for row in range(48):
        same = [other for other in range(row % 4, 48, 4) if other != row]
        assert index_NK[row].tolist() == same[:k]


def test_equals_beyond_the_nearest_are_ordered_too(blocks):
    z_ND = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]] + [[0.0, 1.0, 0.0]] * 8)
    index_NK = nearest_others(z_ND, 4)
    assert index_NK[0].tolist() == [1, 2, 3, 4]
    assert index_NK[1].tolist() == [0, 2, 3, 4]
    assert index_NK[5].tolist() == [2, 3, 4, 6]


def test_a_zero_vector_has_neighbors_and_disturbs_nobodys():
    z_ND = embeddings(30)
    z_ND[7] = 0
    index_NK = nearest_others(z_ND, 3)
    assert index_NK[7].tolist() == [0, 1, 2]
    rest = [i for i in range(30) if i != 7]
    assert np.array_equal(index_NK[rest], np.array(rest)[brute_force_others(z_ND[rest], 3)])


@pytest.mark.parametrize("count", [1, 5])
def test_too_few_images_are_refused(count):
    with pytest.raises(UserError, match=f"k=5 neighbors requested, but only {count} images"):
        nearest_others(embeddings(count), 5)


def test_embeddings_that_are_not_finite_are_refused():
    z_ND = embeddings(20)
    z_ND[3, 1] = float("nan")
    with pytest.raises(UserError, match="embeddings have NaN or infinite values in 1 of 20 rows"):
        nearest_others(z_ND, 5)
