"""The distribution of augmentation parameters, against torchvision's with fixed seeds.

Two-sample Kolmogorov–Smirnov at n = 6000 each. With the seeds fixed the outcome never changes; the
threshold 1e-3 leaves no room for a wrong law, which at this n gives p-values far below it.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torchvision.transforms import v2

from ssdistill.data.recipes import RECIPES, ViewRecipe
from ssdistill.data.views import apply_parameters, view_parameters

N = 6000
KEY = {"seed": 17, "epoch": 4, "view": 1}
CROPS = [
    (32, 32, (0.08, 1.0), (3 / 4, 4 / 3)),
    (32, 32, (0.2, 1.0), (3 / 4, 4 / 3)),
    (20, 50, (0.5, 1.0), (3 / 4, 4 / 3)),
    (60, 15, (0.3, 0.9), (0.5, 1.5)),
]


def drawn(recipe, height=32, width=32, count=N, **key):
    index = torch.arange(count)
    return view_parameters(recipe, index_B=index, height=height, width=width, **(KEY | key))


def torchvision_draws(transform, height=32, width=32):
    image = torch.zeros(3, height, width)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return [transform.make_params([image]) for _ in range(N)]


def assert_same_law(ours, theirs):
    assert stats.ks_2samp(ours, theirs, method="asymp").pvalue > 1e-3


@pytest.mark.parametrize("height,width,scale,ratio", CROPS)
def test_crops_follow_torchvisions_law(height, width, scale, ratio):
    p = drawn(ViewRecipe(scale=scale, ratio=ratio), height, width)
    ours = torch.stack([p.top_B, p.left_B, p.height_B, p.width_B]).double().numpy()
    draws = torchvision_draws(v2.RandomResizedCrop(32, scale, ratio), height, width)
    names = ("top", "left", "height", "width")
    theirs = torch.tensor([[d[k] for d in draws] for k in names]).double().numpy()
    for mine, other in zip(ours, theirs, strict=True):
        assert_same_law(mine, other)
    assert_same_law(ours[2] * ours[3], theirs[2] * theirs[3])
    assert_same_law(ours[3] / ours[2], theirs[3] / theirs[2])
    # Joint law of place and size: what is left of the image beyond the crop.
    assert_same_law(height - ours[0] - ours[2], height - theirs[0] - theirs[2])
    assert_same_law(width - ours[1] - ours[3], width - theirs[1] - theirs[3])


def test_a_crop_that_never_fits_falls_back_to_torchvisions_center():
    recipe = ViewRecipe(scale=(1.0, 1.0), ratio=(0.9, 1.1))
    for height, width in ((20, 60), (60, 20)):
        p = drawn(recipe, height, width, count=20)
        crop = v2.RandomResizedCrop(32, recipe.scale, recipe.ratio)
        want = crop.make_params([torch.zeros(3, height, width)])
        for name, value in want.items():
            assert (getattr(p, f"{name}_B") == value).all()


UNLIKE = ViewRecipe(jitter=1.0, brightness=0.1, contrast=0.9, saturation=0.4, hue=0.3)


@pytest.mark.parametrize("recipe", [RECIPES["simclr"], RECIPES["byol_a"], UNLIKE])
def test_color_factors_follow_torchvisions_law(recipe):
    strengths = (recipe.brightness, recipe.contrast, recipe.saturation, recipe.hue)
    draws = torchvision_draws(v2.ColorJitter(*strengths))
    ours = drawn(recipe).factor_B4.numpy()
    for column, key in enumerate(("brightness", "contrast", "saturation", "hue")):
        assert_same_law(ours[:, column], [d[f"{key}_factor"] for d in draws])


def test_strong_brightness_never_draws_a_negative_factor():
    factor = drawn(ViewRecipe(jitter=1.0, brightness=1.5)).factor_B4[:, 0]
    assert factor.min() >= 0 and factor.max() <= 2.5 and factor.max() > 2.4
    assert stats.kstest(factor.numpy(), "uniform", args=(0, 2.5)).pvalue > 1e-3


def test_orders_are_uniform_over_the_24_permutations():
    order = drawn(RECIPES["simclr"], count=24_000).order_B4
    assert torch.equal(order.sort(dim=1).values, torch.arange(4).expand(24_000, 4))
    code = (order * torch.tensor([64, 16, 4, 1])).sum(dim=1)
    counts = torch.unique(code, return_counts=True)[1]
    assert len(counts) == 24
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_probabilities_are_those_of_the_recipe():
    recipe = ViewRecipe(flip=0.5, jitter=0.8, grayscale=0.2, blur=0.35, solarize=0.1)
    p = drawn(recipe, count=20_000)
    for name in ("flip", "jitter", "grayscale", "blur", "solarize"):
        want = getattr(recipe, name)
        share = getattr(p, f"{name}_B").double().mean().item()
        assert abs(share - want) < 4 * math.sqrt(want * (1 - want) / 20_000)


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_certain_probabilities_are_certain(probability):
    names = ("flip", "jitter", "grayscale", "blur", "solarize")
    p = drawn(ViewRecipe(**dict.fromkeys(names, probability)))
    for name in names:
        assert (getattr(p, f"{name}_B") == bool(probability)).all()


def test_blur_sigma_is_uniform():
    sigma = drawn(RECIPES["simclr"]).blur_sigma_B.numpy()
    assert stats.kstest(sigma, "uniform", args=(0.1, 1.9)).pvalue > 1e-3


def test_draws_of_one_image_are_uncorrelated_with_each_other_and_over_views():
    columns = []
    for view in range(2):
        p = drawn(RECIPES["simclr"], count=20_000, view=view)
        columns += [*p.factor_B4.T, p.blur_sigma_B, p.flip_B, p.jitter_B, p.grayscale_B, p.blur_B]
        columns += [p.top_B, p.height_B]
    correlation = torch.corrcoef(torch.stack([c.double() for c in columns]))
    correlation.fill_diagonal_(0)
    # Place and size of a crop are dependent by construction.
    first, second = len(columns) // 2 - 2, len(columns) // 2 - 1
    correlation[[first, second, -2, -1], [second, first, -1, -2]] = 0
    assert correlation.abs().max() < 5 / math.sqrt(20_000)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    size=st.integers(2, 40),
    low=st.floats(0.01, 1.0),
    ratio=st.floats(0.2, 1.0),
    name=st.sampled_from(sorted(RECIPES)),
)
def test_every_crop_lies_in_the_image_and_every_view_in_the_unit_range(
    height, width, size, low, ratio, name
):
    recipe = ViewRecipe(
        **vars(RECIPES[name]) | {"scale": (low, 1.0), "ratio": (ratio, 1 / ratio), "blur_kernel": 3}
    )
    p = drawn(recipe, height, width, count=16)
    assert (p.top_B >= 0).all() and (p.left_B >= 0).all()
    assert (p.height_B >= 1).all() and (p.width_B >= 1).all()
    assert (p.top_B + p.height_B <= height).all() and (p.left_B + p.width_B <= width).all()
    generator = torch.Generator().manual_seed(size)
    pixels = torch.randint(0, 256, (16, height, width, 3), dtype=torch.uint8, generator=generator)
    view = apply_parameters(pixels, p, size)
    assert view.isfinite().all() and view.min() >= 0 and view.max() <= 1
