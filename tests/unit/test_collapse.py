import inspect
import math

import numpy as np
import pytest
import torch

from ssdistill.errors import UserError
from ssdistill.evaluate import collapse
from ssdistill.evaluate.collapse import alignment, effective_rank, gauges, is_collapsed, uniformity


def gaussian(rows=500, width=64, seed=0):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def test_gauges_are_their_formulas():
    z_BD, z2_BD = gaussian(40, 8).numpy(), gaussian(40, 8, seed=1).numpy()
    u_BD, u2_BD = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (z_BD, z2_BD))
    singular = np.linalg.svd(z_BD, compute_uv=False)
    share = singular / singular.sum()
    pairs = [
        np.exp(-2 * np.sum((u_BD[i] - u_BD[j]) ** 2))
        for i in range(40)
        for j in range(40)
        if i != j
    ]
    assert gauges(torch.from_numpy(z_BD), torch.from_numpy(z2_BD)) == pytest.approx(
        {
            "collapse/std": math.sqrt(8) * u_BD.std(0).mean(),
            "collapse/effective_rank": math.exp(-(share * np.log(share)).sum()),
            "collapse/alignment": np.mean(np.sum((u_BD - u2_BD) ** 2, axis=1)),
            "collapse/uniformity": math.log(np.mean(pairs)),
        },
        rel=1e-5,
    )


def test_isotropic_embeddings_are_healthy():
    found = gauges(gaussian(2000, 64))
    assert found["collapse/std"] == pytest.approx(1, abs=0.02)
    assert found["collapse/effective_rank"] > 60
    assert found["collapse/uniformity"] == pytest.approx(-4 + 8 / 64, abs=0.03)
    assert "collapse/alignment" not in found
    assert not is_collapsed(gaussian())


def test_one_point_is_collapsed():
    z_BD = gaussian(1, 32).repeat(100, 1) + 1e-4 * gaussian(100, 32, seed=1)
    found = gauges(z_BD)
    assert found["collapse/std"] < 0.01
    assert found["collapse/effective_rank"] < 1.01
    assert found["collapse/uniformity"] == pytest.approx(0, abs=1e-3)
    assert is_collapsed(z_BD)


def test_one_line_is_collapsed_though_its_std_is_not_small():
    line_BD = gaussian(100, 1) * gaussian(1, 32)
    assert gauges(line_BD)["collapse/std"] > 0.5
    assert is_collapsed(line_BD)
    assert is_collapsed(line_BD + 3)


def test_rectified_features_with_a_shared_mean_are_not_collapsed():
    assert not is_collapsed(5 + gaussian().relu())


def test_zero_and_broken_embeddings_are_collapsed():
    assert is_collapsed(torch.zeros(8, 4))
    assert effective_rank(torch.zeros(8, 4)) == 0
    assert is_collapsed(gaussian().index_fill(1, torch.tensor([3]), torch.nan))
    assert math.isnan(effective_rank(torch.full((4, 4), torch.inf)))


@pytest.mark.parametrize("shape", [(200, 20), (20, 200)])
def test_effective_rank_counts_orthogonal_directions(shape):
    z_BD = torch.zeros(shape)
    for i in range(5):
        z_BD[i, i] = 3.0
    assert effective_rank(z_BD) == pytest.approx(5, abs=1e-3)


def test_alignment_knows_equal_and_opposite_views():
    z_BD = gaussian()
    assert alignment(z_BD, 7 * z_BD) == pytest.approx(0, abs=1e-9)
    assert alignment(z_BD, -z_BD) == pytest.approx(4)


def test_uniformity_is_the_same_in_small_chunks(monkeypatch):
    whole = uniformity(gaussian())
    monkeypatch.setattr(collapse, "CHUNK", 999)
    assert uniformity(gaussian()) == pytest.approx(whole, rel=1e-12)


def test_mistakes_are_named():
    with pytest.raises(UserError, match="at least two embeddings"):
        gauges(gaussian(1))
    with pytest.raises(UserError, match=r"\(500, 64\) and \(500, 32\)"):
        gauges(gaussian(), gaussian(500, 32))


def test_gauges_cannot_be_given_labels():
    for function in (gauges, is_collapsed, effective_rank, alignment, uniformity):
        names = inspect.signature(function).parameters
        assert not any(word in name for name in names for word in ("label", "target", "class"))
