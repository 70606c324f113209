"""The distribution of mixing weights and rectangles, by Kolmogorov–Smirnov tests."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ssdistill.data.batch import Batch
from ssdistill.data.extra import extra_views
from ssdistill.data.mixing import MixSettings, centered_box, mix_views, paste
from ssdistill.data.recipes import RECIPES

N = 2000


def mixup_share(alpha, seed, step):
    """Fraction of the first of two images, where the other is its partner; else None."""
    views = [torch.tensor([1.0, 0.0]).view(2, 1, 1, 1)]
    (mixed,) = mix_views(views, MixSettings(alpha=alpha), seed=seed, step=step)
    first, second = mixed.flatten().tolist()
    return None if (first, second) == (1.0, 0.0) else first


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_mixup_shares_follow_beta(alpha):
    shares = [mixup_share(alpha, seed=3, step=step) for step in range(N)]
    drawn = [share for share in shares if share is not None]
    # A permutation of two leaves them in place every other time.
    assert abs(len(drawn) - N / 2) < 4 * (N / 4) ** 0.5
    assert stats.kstest(drawn, stats.beta(alpha, alpha).cdf).pvalue > 1e-3


def test_shares_of_successive_steps_and_of_other_seeds_are_unrelated():
    kept = [[mixup_share(1.0, seed, step) for step in range(N)] for seed in (3, 4)]
    columns = [(kept[0][i], kept[0][i + 1], kept[1][i]) for i in range(N - 1)]
    complete = np.array([c for c in columns if None not in c]).T
    correlation = np.corrcoef(complete) - np.eye(3)
    assert abs(correlation).max() < 4 / complete.shape[1] ** 0.5


def test_partners_are_uniform():
    eye = torch.eye(5).view(5, 1, 1, 5)
    counts = torch.zeros(5, 5)
    for step in range(N):
        (mixed,) = mix_views([eye], MixSettings(), seed=0, step=step)
        weights = mixed.view(5, 5)
        share = weights.diagonal().min()
        counts[torch.arange(5), (weights - share * torch.eye(5)).argmax(dim=1)] += 1
    assert stats.chisquare(counts.flatten().numpy()).pvalue > 1e-3


def cutmix_box(step, size=100):
    """Edges of the rectangle of a step, in pixels, and the share it leaves."""
    neighbors = torch.full((1, 4, 4, 3), 255, dtype=torch.uint8)
    images = torch.zeros_like(neighbors)
    batch = Batch(images, torch.zeros(1, dtype=torch.int64), 0, step, N, neighbors)
    black = [torch.zeros(1, 3, size, size)]
    (mixed,) = extra_views(("cutmix",), black, batch, (RECIPES["weak"],), seed=9, size=size)
    white = mixed[0, 0] > 0.5
    rows, columns = white.any(1).nonzero().flatten(), white.any(0).nonzero().flatten()
    edges = [(e[0].item(), e[-1].item() + 1) if len(e) else (0, 0) for e in (rows, columns)]
    return edges, batch.cutmix_fraction


def test_rectangles_of_neighbors_have_the_law_of_beta_2_2():
    drawn = [cutmix_box(step) for step in range(600)]
    inside = [
        (top[1] - top[0]) / 100
        for top, _ in (edges for edges, _ in drawn)
        if top[0] > 0 and top[1] < 100
    ]
    # Side sqrt(1 - share) with the center anywhere: the edges cut off a box the more often, the
    # larger it is, so that sides of whole boxes weigh 1 - side.
    share = stats.beta(2, 2).rvs(200_000, random_state=0)
    side, center = (1 - share) ** 0.5, stats.uniform.rvs(size=200_000, random_state=1)
    whole = (center - side / 2 > 0) & (center + side / 2 < 1)
    assert stats.ks_2samp(np.array(inside), np.round(side[whole], 2)).pvalue > 1e-3
    middles = [sum(left) / 200 for (_, left), _ in drawn]
    clipped = np.clip(center - side / 2, 0, 1), np.clip(center + side / 2, 0, 1)
    assert stats.ks_2samp(middles, np.round((clipped[0] + clipped[1]) / 2, 3)).pvalue > 1e-3


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    area=st.floats(0, 1),
    center_y=st.floats(0, 1),
    center_x=st.floats(0, 1),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
)
def test_a_pasted_rectangle_lies_in_the_image_and_its_share_is_counted(
    area, center_y, center_x, height, width
):
    box = centered_box(area, center_y, center_x)
    assert 0 <= box[0] <= box[1] <= 1 and 0 <= box[2] <= box[3] <= 1
    zeros, ones = torch.zeros(1, 1, height, width), torch.ones(1, 1, height, width)
    pasted, left = paste(zeros, ones, box)
    assert left == pytest.approx(1 - pasted.mean(dtype=torch.float64).item(), abs=1e-9)
    # Each edge is rounded to a whole pixel: a side grows by at most one.
    assert 1 - left <= (area**0.5 + 1 / height) * (area**0.5 + 1 / width) + 1e-6
