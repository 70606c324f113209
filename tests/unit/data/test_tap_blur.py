"""Blurring tap by tap gives what the matrix product gives."""

import pytest
import torch

from ssdistill.data import views
from ssdistill.data.color import gaussian_blur_
from ssdistill.data.recipes import RECIPES
from ssdistill.data.tap_blur import blur_by_taps_
from ssdistill.data.views import TAPS_FROM_SIDE, apply_to_crops, view_parameters


@pytest.mark.parametrize(("height", "width", "kernel"), [(64, 64, 7), (96, 96, 23), (40, 40, 39)])
def test_equals_the_matrix_product(height, width, kernel):
    x_BCHW = torch.rand(4, 3, height, width, generator=torch.Generator().manual_seed(0))
    chosen_K, sigma_K = torch.tensor([0, 2, 3]), torch.tensor([0.1, 0.9, 2.0])
    expected_BCHW = x_BCHW.clone()
    gaussian_blur_(expected_BCHW, chosen_K, sigma_K, kernel)
    blurred_BCHW = x_BCHW.clone()
    blur_by_taps_(blurred_BCHW, chosen_K, sigma_K, kernel)
    torch.testing.assert_close(blurred_BCHW, expected_BCHW, rtol=0, atol=1e-5)
    assert torch.equal(blurred_BCHW[1], x_BCHW[1])
    assert not torch.equal(blurred_BCHW[3], x_BCHW[3])


def test_heights_and_widths_may_differ_and_flat_images_stay():
    x_BCHW = torch.rand(1, 5, 32, 48)
    blurred_BCHW = x_BCHW.clone()
    blur_by_taps_(blurred_BCHW, torch.tensor([0]), torch.tensor([1.5]), 9)
    turned_BCHW = x_BCHW.transpose(2, 3).contiguous()
    blur_by_taps_(turned_BCHW, torch.tensor([0]), torch.tensor([1.5]), 9)
    torch.testing.assert_close(blurred_BCHW, turned_BCHW.transpose(2, 3), rtol=0, atol=1e-6)
    flat_BCHW = torch.full((1, 1, 16, 16), 0.4)
    blur_by_taps_(flat_BCHW, torch.tensor([0]), torch.tensor([2.0]), 9)
    torch.testing.assert_close(flat_BCHW, torch.full_like(flat_BCHW, 0.4), rtol=0, atol=1e-6)


@pytest.mark.parametrize("side", [TAPS_FROM_SIDE, 32])
def test_crops_of_originals_look_the_same_as_if_they_were_blurred_by_products(side, monkeypatch):
    crops_BCHW = torch.randint(0, 256, (6, 3, side, side), dtype=torch.uint8)
    recipe = RECIPES["byol_a"]
    index_B = torch.arange(6)
    params = view_parameters(
        recipe, seed=0, epoch=0, index_B=index_B, view=0, height=200, width=200
    )
    view_BCHW = apply_to_crops(crops_BCHW, params)
    used = []
    monkeypatch.setattr(views, "blur_by_taps_", lambda *args: used.append(1))
    apply_to_crops(crops_BCHW, params)
    assert bool(used) == (side >= TAPS_FROM_SIDE)
    monkeypatch.setattr(views, "TAPS_FROM_SIDE", 1000)
    torch.testing.assert_close(view_BCHW, apply_to_crops(crops_BCHW, params), rtol=0, atol=1e-5)
