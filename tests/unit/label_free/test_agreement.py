import inspect

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.neighbors import NearestNeighbors

from ssdistill.errors import UserError
from ssdistill.label_free import agreement as module
from ssdistill.label_free.agreement import (
    LinearCKA,
    agreement,
    centered_cosine,
    knn_overlap,
    mapped_cosine,
    rank_correlation,
)


def gaussian(rows=300, width=16, seed=0):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def cka_of(a_ND, b_NE):
    cka = LinearCKA()
    cka.update(a_ND, b_NE)
    return cka.compute()


def unbiased_hsic(k_NN, l_NN):
    """Song et al., JMLR 13, 2012, equation 5."""
    n = len(k_NN)
    k_NN, l_NN = k_NN - np.diag(np.diag(k_NN)), l_NN - np.diag(np.diag(l_NN))
    one = np.ones(n)
    return (
        np.trace(k_NN @ l_NN)
        + (one @ k_NN @ one) * (one @ l_NN @ one) / ((n - 1) * (n - 2))
        - 2 / (n - 2) * (one @ k_NN @ l_NN @ one)
    ) / (n * (n - 3))


@pytest.mark.parametrize("widths", [(5, 5), (3, 11)])
def test_cka_is_the_unbiased_estimate_from_kernels(widths):
    a_ND = gaussian(30, widths[0]) + 2
    b_NE = a_ND @ gaussian(*widths, seed=1) + gaussian(30, widths[1], seed=2) - 5
    k_NN, l_NN = ((z @ z.T).double().numpy() for z in (a_ND, b_NE))
    expected = unbiased_hsic(k_NN, l_NN) / np.sqrt(
        unbiased_hsic(k_NN, k_NN) * unbiased_hsic(l_NN, l_NN)
    )
    assert cka_of(a_ND, b_NE) == pytest.approx(expected, rel=1e-4)


def test_cka_does_not_depend_on_batches():
    a_ND, b_NE = gaussian() + 100, gaussian(width=9, seed=1)
    b_NE[:, :5] += a_ND[:, :5] - 100
    streamed = LinearCKA()
    for start in range(0, 300, 37):
        streamed.update(a_ND[start : start + 37], b_NE[start : start + 37])
    assert streamed.compute() == pytest.approx(cka_of(a_ND, b_NE), rel=1e-9)


def test_cka_ignores_rotation_scale_and_shift():
    a_ND = gaussian()
    rotation_DD = torch.linalg.qr(gaussian(16, 16, seed=3)).Q
    assert cka_of(a_ND, 3 * a_ND @ rotation_DD - 8) == pytest.approx(1, abs=1e-6)


def test_cka_of_unrelated_features_is_about_zero_where_the_biased_one_is_not():
    values = [cka_of(gaussian(60, 128, seed=s), gaussian(60, 128, seed=s + 50)) for s in range(10)]
    assert abs(np.mean(values)) < 0.1
    a_ND, b_ND = (z - z.mean(0) for z in (gaussian(60, 128), gaussian(60, 128, seed=50)))
    biased = (a_ND.T @ b_ND).norm() ** 2 / ((a_ND.T @ a_ND).norm() * (b_ND.T @ b_ND).norm())
    assert biased > 0.5


def test_equal_embeddings_agree_entirely():
    found = agreement(gaussian(), gaussian().numpy())
    assert list(found) == [
        "agree/cka",
        "agree/cosine",
        "agree/cosine_p01",
        "agree/mapped_cosine",
        "agree/knn_overlap",
        "agree/rank_correlation",
    ]
    assert list(found.values()) == pytest.approx([1] * 6, abs=1e-4)


def test_cosine_is_centered():
    a_ND, b_ND = gaussian() + 10, gaussian(seed=1) + 10
    assert torch.cosine_similarity(a_ND, b_ND).mean() > 0.9
    assert abs(centered_cosine(a_ND, b_ND).mean()) < 0.1
    found = agreement(a_ND, b_ND)
    cosine_N = centered_cosine(a_ND, b_ND)
    assert found["agree/cosine"] == pytest.approx(cosine_N.mean().item())
    assert found["agree/cosine_p01"] == pytest.approx(torch.quantile(cosine_N, 0.01).item())


def test_other_width_is_compared_through_a_linear_map():
    a_ND = gaussian()
    found = agreement(a_ND, a_ND @ gaussian(16, 40, seed=1) + 4)
    assert found["agree/cosine"] == found["agree/mapped_cosine"] == pytest.approx(1, abs=1e-3)


def test_map_is_scored_on_images_it_was_not_fitted_to():
    a_ND, b_ND = gaussian(100, 80), gaussian(100, 80, seed=1)
    a_even, b_even = (z[::2] - z[::2].mean(0) for z in (a_ND, b_ND))
    fitted = a_even @ torch.linalg.lstsq(a_even, b_even, driver="gelsd").solution
    assert torch.cosine_similarity(fitted, b_even).mean() > 0.9
    assert abs(mapped_cosine(a_ND, b_ND).mean()) < 0.2


def test_map_is_ridge_regression():
    a_ND, b_ND = gaussian(seed=4).double(), gaussian(width=3, seed=5).double()
    b_ND[:, :2] += a_ND[:, :2]
    a_ND, b_ND = a_ND - a_ND[::2].mean(0), b_ND - b_ND[::2].mean(0)
    expected_N = torch.cosine_similarity(
        a_ND[1::2] @ torch.linalg.lstsq(a_ND[::2], b_ND[::2]).solution, b_ND[1::2]
    )
    assert torch.allclose(mapped_cosine(a_ND, b_ND), expected_N, atol=1e-3)


def test_knn_overlap_is_that_of_scikit_learns_neighbors():
    a_ND = gaussian()
    b_ND = a_ND + 0.5 * gaussian(seed=1)
    index_a, index_b = (
        NearestNeighbors(n_neighbors=11, metric="cosine").fit(z).kneighbors(z)[1][:, 1:]
        for z in (a_ND.numpy(), b_ND.numpy())
    )
    expected = np.mean([len(set(x) & set(y)) / 10 for x, y in zip(index_a, index_b, strict=True)])
    assert knn_overlap(a_ND, b_ND) == pytest.approx(expected)
    assert 0.2 < expected < 0.9


def test_knn_overlap_of_some_queries_is_near_that_of_all():
    a_ND = gaussian(900)
    b_ND = a_ND + 0.5 * gaussian(900, seed=1)
    assert knn_overlap(a_ND, b_ND, 10, 300) == pytest.approx(knn_overlap(a_ND, b_ND), abs=0.05)


def test_duplicates_do_not_count_an_image_as_its_own_neighbor():
    a_ND = gaussian(40).repeat(3, 1)
    assert knn_overlap(a_ND, a_ND, k=2) == 1


def spearman_by_anchor(a_ND, b_ND):
    """scipy's, anchor by anchor, of similarities as float32 has them."""
    a_NN, b_NN = ((u := torch.nn.functional.normalize(z, dim=1)) @ u.T for z in (a_ND, b_ND))
    rows = [torch.arange(len(a_ND)) != i for i in range(len(a_ND))]
    return [spearmanr(a_NN[i, r], b_NN[i, r]).statistic for i, r in enumerate(rows)]


@pytest.mark.parametrize("noise", [0.1, 1.0, 10.0])
def test_rank_correlation_is_the_mean_of_scipys(noise):
    a_ND = gaussian(60)
    b_ND = a_ND @ gaussian(16, 9, seed=1) + noise * gaussian(60, 9, seed=2)
    wanted = np.mean(spearman_by_anchor(a_ND, b_ND))
    assert rank_correlation(a_ND, b_ND) == pytest.approx(wanted, abs=1e-5)


def test_equal_similarities_share_their_mean_rank():
    """Directions on a grid and duplicates: most similarities occur many times."""
    generator = torch.Generator().manual_seed(0)
    a_ND = torch.randint(0, 2, (80, 4), generator=generator) * 2.0 - 1
    b_ND = torch.randint(0, 2, (80, 16), generator=generator) * 2.0 - 1
    b_ND[:, :4] = a_ND
    similarity_NN = a_ND @ a_ND.T
    assert max(len(row.unique()) for row in similarity_NN) < 10
    wanted = np.mean(spearman_by_anchor(a_ND, b_ND))
    assert 0.2 < wanted < 0.9
    assert rank_correlation(a_ND, b_ND) == pytest.approx(wanted, abs=1e-6)


def test_rank_correlation_knows_the_same_the_reversed_and_no_order():
    a_ND = gaussian(50)
    assert rank_correlation(a_ND, 3 * a_ND) == 1
    assert abs(rank_correlation(gaussian(400), gaussian(400, seed=1))) < 0.02
    assert rank_correlation(a_ND, torch.ones(50, 4)) == 0
    assert rank_correlation(torch.zeros(50, 4), a_ND) == 0


def test_rank_correlation_can_be_that_of_reversed_similarities():
    """Three images: to each, one encoder finds near what the other finds far."""
    angle = torch.tensor([0.0, 0.1, 0.5])
    a_ND = torch.stack([angle.cos(), angle.sin()], 1)
    angle = torch.tensor([0.0, 0.5, 0.1])
    b_ND = torch.stack([angle.cos(), angle.sin()], 1)
    # Anchor 0 sees the others reversed, 1 sees 0 nearer than 2 and then farther, 2 likewise.
    assert spearman_by_anchor(a_ND, b_ND) == pytest.approx([-1, -1, -1])
    assert rank_correlation(a_ND, b_ND) == -1


def test_anchors_are_evenly_spaced_and_chunks_are_immaterial(monkeypatch):
    a_ND = gaussian(90)
    b_ND = a_ND + gaussian(90, seed=1)
    by_anchor = spearman_by_anchor(a_ND, b_ND)
    assert rank_correlation(a_ND, b_ND, 30) == pytest.approx(np.mean(by_anchor[::3]), abs=1e-5)
    whole = rank_correlation(a_ND, b_ND)
    monkeypatch.setattr(module, "CHUNK", 200)
    assert rank_correlation(a_ND, b_ND) == pytest.approx(whole, abs=1e-6)


def test_collapsed_side_agrees_with_nothing():
    assert cka_of(torch.ones(50, 4), gaussian(50, 4)) == 0


@pytest.mark.parametrize(
    ("a_ND", "b_ND", "says"),
    [
        (gaussian(20), gaussian(21), "got 20 and 21 embeddings"),
        (gaussian(9), gaussian(9), "more than k=10"),
        (gaussian().log(), gaussian(), "features have NaN"),
    ],
)
def test_mistakes_are_named(a_ND, b_ND, says):
    with pytest.raises(UserError, match=says):
        agreement(a_ND, b_ND)


def test_agreement_cannot_be_given_labels():
    functions = (agreement, knn_overlap, mapped_cosine, centered_cosine, rank_correlation)
    for function in (*functions, LinearCKA.update):
        names = inspect.signature(function).parameters
        assert not any(word in name for name in names for word in ("label", "target", "class"))
