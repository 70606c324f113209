import inspect
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ssdistill.chain import evaluation
from ssdistill.data.recipes import RECIPES
from ssdistill.data.views import make_view
from ssdistill.errors import UserError
from ssdistill.evaluate.subject import Subject
from ssdistill.label_free import collapse
from ssdistill.label_free.collapse import (
    alignment,
    alpha,
    collapse_metrics,
    effective_rank,
    entropy_rank,
    is_collapsed,
    uniformity,
)
from ssdistill.models.representation import Representation


def gaussian(rows=500, width=64, seed=0):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def test_label_free_metrics_are_their_formulas():
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
    assert collapse_metrics(torch.from_numpy(z_BD), torch.from_numpy(z2_BD)) == pytest.approx(
        {
            "collapse/std": math.sqrt(8) * u_BD.std(0).mean(),
            "collapse/effective_rank": math.exp(-(share * np.log(share)).sum()),
            "collapse/alignment": np.mean(np.sum((u_BD - u2_BD) ** 2, axis=1)),
            "collapse/uniformity": math.log(np.mean(pairs)),
        },
        rel=1e-5,
    )


def test_isotropic_embeddings_are_healthy():
    found = collapse_metrics(gaussian(2000, 64))
    assert found["collapse/std"] == pytest.approx(1, abs=0.02)
    assert found["collapse/effective_rank"] > 60
    assert found["collapse/uniformity"] == pytest.approx(-4 + 8 / 64, abs=0.03)
    assert "collapse/alignment" not in found
    assert not is_collapsed(gaussian())


def test_one_point_is_collapsed():
    z_BD = gaussian(1, 32).repeat(100, 1) + 1e-4 * gaussian(100, 32, seed=1)
    found = collapse_metrics(z_BD)
    assert found["collapse/std"] < 0.01
    assert found["collapse/effective_rank"] < 1.01
    assert found["collapse/uniformity"] == pytest.approx(0, abs=1e-3)
    assert is_collapsed(z_BD)


def test_one_line_is_collapsed_though_its_std_is_not_small():
    line_BD = gaussian(100, 1) * gaussian(1, 32)
    assert collapse_metrics(line_BD)["collapse/std"] > 0.5
    assert is_collapsed(line_BD)
    assert is_collapsed(line_BD + 3)


def test_rectified_features_with_a_shared_mean_are_not_collapsed():
    assert not is_collapsed(5 + gaussian().relu())


@pytest.fixture
def eigenvalues(monkeypatch):
    """Shapes of the matrices whose eigenvalues were computed."""
    shapes, eigvalsh = [], torch.linalg.eigvalsh
    monkeypatch.setattr(
        torch.linalg, "eigvalsh", lambda gram: shapes.append(tuple(gram.shape)) or eigvalsh(gram)
    )
    return shapes


def test_a_healthy_batch_costs_one_spectrum(eigenvalues):
    collapse_metrics(gaussian(64, 200), gaussian(64, 200, seed=1))
    assert not is_collapsed(gaussian(64, 200))
    assert eigenvalues == [(64, 64)]


@pytest.mark.parametrize("spread", [0.0, 1e-3, 1e-2, 0.03, 0.1, 0.3])
@pytest.mark.parametrize("shape", [(100, 32), (32, 100)])
def test_no_spectrum_is_saved_where_it_would_say_otherwise(spread, shape, eigenvalues):
    """Embeddings that go from a line to a ball: the verdict is the effective rank's own."""
    z_BD = gaussian(shape[0], 1) * gaussian(1, shape[1], seed=1) + spread * gaussian(*shape, seed=2)
    rank = effective_rank(z_BD - z_BD.double().mean(0))
    participation = torch.linalg.svdvals(z_BD.double() - z_BD.double().mean(0)).square()
    assert participation.sum() ** 2 / participation.square().sum() <= rank
    eigenvalues.clear()
    for limit in (1.05, 1.1, 2.0, rank * 1.001, rank * 0.999):
        assert is_collapsed(z_BD, min_rank=limit) == (rank < limit)
    assert eigenvalues


def test_embeddings_too_small_to_square_are_looked_into():
    line_BD = 1e-170 * gaussian(100, 1).double() * gaussian(1, 32).double()
    assert is_collapsed(line_BD)


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


def falling(rows, width, exponent, seed=0):
    """Embeddings whose covariance has the eigenvalues i^-exponent, exactly."""
    z_BD = gaussian(rows, width, seed).double()
    frame_BD = torch.linalg.qr(z_BD - z_BD.mean(0)).Q
    value_K = torch.arange(1, frame_BD.shape[1] + 1, dtype=torch.float64) ** -exponent
    turn_DD = torch.linalg.qr(gaussian(width, width, seed + 1).double()).Q
    return frame_BD * value_K.sqrt() @ turn_DD[: len(value_K)] * 30


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 2.3])
@pytest.mark.parametrize("shape", [(300, 120), (80, 200)])
def test_alpha_is_the_exponent_of_a_power_law(shape, exponent):
    # Centered rows have no more than B - 1 directions: the last of a square frame is lost.
    z_BD = falling(*shape, exponent)
    assert alpha(z_BD + 3) == pytest.approx(exponent, abs=1e-3)
    assert alpha(1e4 * z_BD) == pytest.approx(exponent, abs=1e-3)


@pytest.mark.parametrize("shape", [(400, 64), (60, 250), (2000, 150)])
def test_alpha_is_weighted_least_squares_between_two_ranks(shape):
    z_BD = gaussian(*shape).relu() @ gaussian(shape[1], shape[1], seed=1)
    value_K = np.sort(np.linalg.eigvalsh(np.cov(z_BD.double().numpy().T)))[::-1]
    value_K = value_K[: min(shape[0] - 1, shape[1])]
    rank = np.arange(4, min(100, len(value_K)) + 1)
    # polyfit weighs residuals, not their squares.
    slope = np.polyfit(np.log(rank), np.log(value_K[3:100]), 1, w=rank**-0.5)[0]
    assert alpha(z_BD) == pytest.approx(-slope, rel=1e-6)


@pytest.mark.parametrize(
    "z_BD",
    [
        torch.zeros(50, 20),
        torch.ones(50, 20) * 1e3,
        1 + 1e-7 * gaussian(50, 20),
        gaussian(50, 1) * gaussian(1, 20),
        gaussian(9, 20),
        gaussian(50, 8),
        gaussian(50, 20).index_fill(1, torch.tensor([3]), torch.nan),
        gaussian(50, 20).index_fill(0, torch.tensor([3]), torch.inf),
    ],
    ids=["zero", "point", "rounding", "line", "few", "narrow", "nan", "infinite"],
)
def test_where_there_is_no_spectrum_there_is_no_alpha(z_BD):
    assert math.isnan(alpha(z_BD))


@pytest.mark.parametrize(("spread", "is_told"), [(1.4e-5, False), (1.4e-4, True)])
def test_a_spread_is_rounding_as_a_fraction_of_the_whole_length(spread, is_told):
    z_BD = 1 + spread * gaussian(50, 20).double()
    value_K = torch.linalg.svdvals(z_BD - z_BD.mean(0)).square()
    # Within a factor of B D of the limit, which a mean in place of the sum would pass over.
    assert (value_K > 1e-10).all() and ((value_K > 1e-10 * z_BD.square().sum()).all() == is_told)
    assert math.isnan(alpha(z_BD)) != is_told


@pytest.mark.parametrize(("rows", "is_told"), [(10, False), (11, True)])
def test_ten_eigenvalues_are_enough_for_an_alpha(rows, is_told):
    # Centered rows have no more than B - 1 directions.
    assert math.isnan(alpha(gaussian(rows, 20))) != is_told


def test_entropy_rank_counts_equal_shares():
    assert entropy_rank(torch.tensor([2.0, 2, 2, 0, 0])) == pytest.approx(3)
    assert entropy_rank(torch.zeros(3)) == 0


def test_alignment_knows_equal_and_opposite_views():
    z_BD = gaussian()
    assert alignment(z_BD, 7 * z_BD) == pytest.approx(0, abs=1e-9)
    assert alignment(z_BD, -z_BD) == pytest.approx(4)


def test_uniformity_is_the_same_in_small_chunks(monkeypatch):
    whole = uniformity(gaussian())
    monkeypatch.setattr(collapse, "CHUNK", 999)
    assert uniformity(gaussian()) == pytest.approx(whole, rel=1e-12)


def test_mistakes_are_named():
    with pytest.raises(UserError, match="of two images or more"):
        collapse_metrics(gaussian(1))
    with pytest.raises(UserError, match=r"\(500, 64\) and \(500, 32\)"):
        collapse_metrics(gaussian(), gaussian(500, 32))


def test_label_free_metrics_cannot_be_given_labels():
    for function in (collapse_metrics, is_collapsed, effective_rank, alignment, uniformity, alpha):
        names = inspect.signature(function).parameters
        assert not any(word in name for name in names for word in ("label", "target", "class"))


def pixels(x_BCHW):
    return Representation(x_BCHW.flatten(1) - 0.5)


@pytest.fixture
def pictures(make_store):
    """``pictures(recipe)``: a workspace whose data has a recipe of its own, or none."""

    def pictures(recipe=None):
        source = SimpleNamespace(default_recipe=recipe)
        return SimpleNamespace(source=source, test=make_store(30), image_size=16)

    return pictures


def judged(workspace):
    return Subject(pixels, None, workspace.test)


@pytest.mark.parametrize("recipe", [None, "digits"])
def test_views_of_test_images_are_drawn_by_the_recipe_of_the_data(pictures, recipe):
    workspace, shown = pictures(recipe), slice(0, 30, 4)
    images_BHWC = torch.from_numpy(workspace.test.images[shown].copy())
    index_B = torch.arange(0, 30, 4)
    unit = []
    for view in (0, 1):
        x_BCHW = make_view(
            images_BHWC,
            RECIPES[recipe or "strong"],
            seed=0,
            epoch=0,
            index_B=index_B,
            view=view,
            size=16,
        )
        z_BD = pixels(x_BCHW).embedding_BD.double()
        unit.append(z_BD / z_BD.norm(dim=1, keepdim=True))
    wanted = (unit[0] - unit[1]).square().sum(1).mean().item()
    assert wanted > 0.01
    found = evaluation.of_views(judged(workspace), workspace, shown)["collapse/alignment"]
    assert found == pytest.approx(wanted, rel=1e-5)


def test_one_view_twice_is_perfectly_aligned(pictures):
    workspace = pictures("eval")
    found = evaluation.of_views(judged(workspace), workspace, slice(0, 30, 1))
    assert found["collapse/alignment"] == 0


def test_views_of_test_images_draw_nothing(pictures):
    before = torch.get_rng_state()
    workspace = pictures()
    subject, shown = judged(workspace), slice(0, 30, 1)
    first, again = (evaluation.of_views(subject, workspace, shown) for _ in range(2))
    assert first == again and 1 < first["collapse/lidar"] < 30
    assert torch.equal(torch.get_rng_state(), before)
