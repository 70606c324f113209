"""Images colored one by one look as if they were colored in a batch."""

import pytest
import torch
from torch.testing import assert_close

from ssdistill.data import color
from ssdistill.data.image_color import FROM_SIDE, blur_, color_, colors_of, rotate_hue_
from ssdistill.data.recipes import RECIPES, ViewRecipe
from ssdistill.data.view_parameters import ViewParameters, view_parameters
from ssdistill.data.views import apply_to_crops

ALL = {"flip": 0.5, "jitter": 1.0, "brightness": 0.8, "contrast": 0.8, "saturation": 0.8}
ALL |= {"hue": 0.5, "grayscale": 0.3, "blur": 0.5, "solarize": 0.3}


def drawn(recipe: ViewRecipe, count: int) -> ViewParameters:
    key = {"seed": 0, "epoch": 0, "view": 0, "index_B": torch.arange(count)}
    return view_parameters(recipe, height=200, width=200, **key)


def one_by_one(crops_BCHW: torch.Tensor, params: ViewParameters) -> torch.Tensor:
    out_BCHW = torch.empty(crops_BCHW.shape)
    colors = colors_of(params, crops_BCHW.shape[1], tuple(crops_BCHW.shape[2:]))
    for crop_CHW, own, out_CHW in zip(crops_BCHW, colors, out_BCHW, strict=True):
        color_(crop_CHW, own, out_CHW)
    return out_BCHW


@pytest.mark.parametrize("recipe", [ViewRecipe(**ALL), RECIPES["simclr"], RECIPES["byol_b"]])
@pytest.mark.parametrize("size", [(96, 96), (100, 120)])
def test_equals_a_batch(recipe, size):
    crops_BCHW = torch.randint(0, 256, (40, 3, *size), dtype=torch.uint8)
    crops_BCHW[0] = 7
    crops_BCHW[1, :, :, ::2] = 255
    params = drawn(recipe, 40)
    views_BCHW = one_by_one(crops_BCHW, params)
    assert_close(views_BCHW, apply_to_crops(crops_BCHW, params), rtol=0, atol=1e-5)
    assert views_BCHW.min() >= 0 and views_BCHW.max() <= 1
    floats_BCHW = one_by_one(crops_BCHW / 255, params)
    assert_close(floats_BCHW, views_BCHW, rtol=0, atol=1e-6)


@pytest.mark.parametrize("turn", [-0.5, -0.37, -0.1, 0.0, 0.01, 0.2, 0.5])
def test_hue_turns_as_in_a_batch(turn):
    x_CN = torch.rand(3, 5000, generator=torch.Generator().manual_seed(1))
    levels = torch.tensor([0.0, 0.25, 1.0])
    x_CN = torch.cat([x_CN, torch.cartesian_prod(levels, levels, levels).T], dim=1)
    expected_CN, turned_CN = x_CN.clone(), x_CN.clone()
    color.rotate_hue_(expected_CN[None], torch.tensor([turn]))
    rotate_hue_(turned_CN, turn)
    assert_close(turned_CN, expected_CN, rtol=0, atol=2e-6)


@pytest.mark.parametrize(("height", "width", "kernel"), [(64, 64, 7), (96, 40, 23), (40, 50, 39)])
@pytest.mark.parametrize("sigma", [0.1, 0.9, 2.0, 8.0])
def test_blur_equals_the_matrix_product(height, width, kernel, sigma):
    x_CHW = torch.rand(5, height, width, generator=torch.Generator().manual_seed(0))
    expected_1CHW = x_CHW[None].clone()
    color.gaussian_blur_(expected_1CHW, torch.tensor([0]), torch.tensor([sigma]), kernel)
    blur_(x_CHW, sigma, kernel)
    assert_close(x_CHW, expected_1CHW[0], rtol=0, atol=1e-5)


def test_small_views_and_single_channels_are_left_to_a_batch():
    params = drawn(ViewRecipe(**ALL), 4)
    assert colors_of(params, 3, FROM_SIDE) and colors_of(params, 3, (FROM_SIDE, 500))
    assert colors_of(params, 3, (FROM_SIDE - 1, 500)) is None
    assert colors_of(drawn(ViewRecipe(**ALL).for_channels(5), 4), 5, 200) is None
    assert colors_of(drawn(ViewRecipe(jitter=1.0, noise=0.1), 4), 3, 200) is None
    assert colors_of(drawn(ViewRecipe(flip=0.5), 4), 5, 8)
