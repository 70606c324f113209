import itertools
from dataclasses import replace

import pytest
import torch
from torchvision.transforms.v2 import functional as tv

from ssdistill.data import color, geometry
from ssdistill.data.recipes import RECIPES, ViewRecipe, expand
from ssdistill.data.views import (
    apply_parameters,
    apply_to_crops,
    eval_view,
    make_view,
    view_parameters,
)
from ssdistill.errors import UserError

KEY = {"seed": 3, "epoch": 1, "view": 0}
SIMCLR = RECIPES["simclr"]


def make_images(count=24, height=32, width=32, seed=0):
    """Smooth colors with noise on top, uint8 BHWC, reaching both ends of the range."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    x = tv.resize(coarse, [height, width]) * 1.6 - 0.3
    x += 0.1 * torch.randn(x.shape, generator=generator)
    return (x.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def floats(count=24, **kwargs):
    return make_images(count, **kwargs).permute(0, 3, 1, 2).float().div(255).contiguous()


def drawn(images, recipe, index=None, **key):
    height, width = images.shape[1:3]
    index = torch.arange(len(images)) if index is None else index
    return view_parameters(recipe, index_B=index, height=height, width=width, **(KEY | key))


def reference_view(image_HWC, p, i, size):
    """One image's view, made with torchvision on a float tensor."""
    x = image_HWC.permute(2, 0, 1).float() / 255
    box = (int(edge[i]) for edge in (p.top_B, p.left_B, p.height_B, p.width_B))
    x = tv.resized_crop(x, *box, [size, size], antialias=True)
    x = tv.horizontal_flip(x) if p.flip_B[i] else x
    operations = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
    if p.jitter_B[i]:
        for number in p.order_B4[i].tolist():
            x = operations[number](x, float(p.factor_B4[i, number]))
    x = tv.rgb_to_grayscale(x, 3) if p.grayscale_B[i] else x
    if p.blur_B[i]:
        kernel = color.blur_kernel_size(p.blur_kernel, size)
        x = tv.gaussian_blur(x, [kernel, kernel], [float(p.blur_sigma_B[i])] * 2)
    return tv.solarize(x, p.solarize_threshold) if p.solarize_B[i] else x


def assert_close(got, want, atol=1e-5):
    torch.testing.assert_close(got, want, atol=atol, rtol=0)


@pytest.mark.parametrize(
    "height,width,size", [(32, 32, 32), (32, 32, 20), (40, 25, 64), (9, 70, 8)]
)
def test_crop_resize_and_flip_equal_torchvision(height, width, size):
    images = make_images(height=height, width=width)
    p = drawn(images, ViewRecipe(scale=(0.05, 1.0), ratio=(0.3, 3.0)))
    assert p.flip_B.any() and not p.flip_B.all()
    want = torch.stack([reference_view(image, p, i, size) for i, image in enumerate(images)])
    assert_close(apply_parameters(images, p, size), want)


def test_one_pixel_crop_fills_the_view_with_that_pixel():
    images = make_images(2)
    boxes = geometry.Boxes(*(torch.tensor(v) for v in ([5, 31], [7, 0], [1, 1], [1, 1])))
    view = geometry.crop_resize_flip(images, boxes, torch.tensor([False, True]), 16)
    want = torch.stack([images[0, 5, 7], images[1, 31, 0]]) / 255
    assert_close(view, want[:, :, None, None].expand(-1, -1, 16, 16))


@pytest.mark.parametrize(
    "number,operation,factors",
    [
        (color.BRIGHTNESS, tv.adjust_brightness, (0.0, 0.4, 1.0, 1.8)),
        (color.CONTRAST, tv.adjust_contrast, (0.0, 0.4, 1.0, 1.8)),
        (color.SATURATION, tv.adjust_saturation, (0.0, 0.4, 1.0, 1.8)),
        (color.HUE, tv.adjust_hue, (-0.5, -0.2, 0.01, 0.1, 0.5)),
    ],
)
@pytest.mark.parametrize("position", range(4))
def test_each_color_operation_equals_torchvision(number, operation, factors, position):
    for factor in factors:
        x = floats(5)
        rest = [k for k in range(4) if k != number]
        order = torch.tensor([*rest[:position], number, *rest[position:]]).expand(5, 4)
        factor_B4 = torch.tensor([1.0, 1.0, 1.0, 0.0]).repeat(5, 1)
        factor_B4[:, number] = factor
        want = operation(x.clone(), factor)
        group = color.jitter_groups(order, torch.ones(5, dtype=torch.bool))
        color.jitter_(x, order, factor_B4, group)
        assert_close(x, want)


def test_all_orders_of_the_four_operations_equal_torchvision():
    orders = torch.tensor(list(itertools.permutations(range(4))))
    images = make_images(len(orders))
    p = drawn(images, ViewRecipe(**vars(SIMCLR) | {"jitter": 1.0}))
    p = type(p)(**vars(p) | {"order_B4": orders})
    want = torch.stack([reference_view(image, p, i, 32) for i, image in enumerate(images)])
    assert_close(apply_parameters(images, p, 32), want, atol=2e-5)


def test_hue_of_pure_colors_turns_by_thirds():
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1)
    for turn, want in ((1 / 3, [0.0, 1.0, 0.0]), (-1 / 3, [0.0, 0.0, 1.0]), (0.5, [0.0, 1.0, 1.0])):
        x = red.clone()
        color.rotate_hue_(x, torch.tensor([turn]))
        assert_close(x.flatten(), torch.tensor(want))


@pytest.mark.parametrize("size,kernel", [(32, 3), (32, 7), (20, 11), (96, 9)])
def test_blur_equals_torchvision(size, kernel):
    x = floats(6, height=size, width=size)
    chosen, sigma = torch.tensor([0, 2, 5]), torch.tensor([0.1, 0.8, 2.0])
    want = x.clone()
    for k, s in zip(chosen.tolist(), sigma.tolist(), strict=True):
        want[k] = tv.gaussian_blur(x[k], [kernel, kernel], [s, s])
    color.gaussian_blur_(x, chosen, sigma, kernel)
    assert_close(x, want)


def test_automatic_blur_kernel_is_an_odd_tenth_of_the_view():
    sizes = (16, 32, 64, 96, 224)
    assert [color.blur_kernel_size(None, size) for size in sizes] == [3, 3, 7, 9, 23]


def test_blur_kernel_wider_than_the_view_is_named():
    images = make_images(2)
    with pytest.raises(UserError, match="blur_kernel=17 does not fit a view of 8x8"):
        make_view(
            images,
            ViewRecipe(blur=1.0, blur_kernel=17),
            index_B=torch.arange(2),
            size=8,
            **KEY,
        )


def test_grayscale_and_solarize_equal_torchvision_and_touch_only_the_chosen():
    x = floats(4)
    want = x.clone()
    want[1] = tv.rgb_to_grayscale(x[1], 3)
    want[3] = tv.solarize(x[3], 0.4)
    color.grayscale_(x, torch.tensor([1]))
    color.solarize_(x, torch.tensor([3]), 0.4)
    assert_close(x, want)


@pytest.mark.parametrize("name", sorted(RECIPES))
@pytest.mark.parametrize("size", [20, 32, 48])
def test_whole_recipe_equals_torchvision_given_the_same_draw(name, size):
    images = make_images(40)
    p = drawn(images, RECIPES[name])
    got = apply_parameters(images, p, size)
    want = torch.stack([reference_view(image, p, i, size) for i, image in enumerate(images)])
    assert_close(got, want, atol=2e-5)
    assert got.dtype == torch.float32 and got.shape == (40, 3, size, size)
    assert got.min() >= 0 and got.max() <= 1 and not got.requires_grad


def test_make_view_is_the_drawn_parameters_applied():
    images = make_images()
    index = torch.arange(100, 124)
    made = make_view(images, SIMCLR, index_B=index, size=32, **KEY)
    assert torch.equal(made, apply_parameters(images, drawn(images, SIMCLR, index), 32))


def test_view_does_not_depend_on_the_batch_around_it():
    images = make_images(600)
    index = torch.arange(600) * 7
    whole = make_view(images, SIMCLR, index_B=index, size=32, **KEY)
    rows = torch.tensor([599, 3, 250, 3])
    few = make_view(images[rows], SIMCLR, index_B=index[rows], size=32, **KEY)
    assert_close(few, whole[rows], atol=1e-6)


@pytest.mark.parametrize("other", [{"view": 1}, {"epoch": 2}, {"seed": 4}])
def test_other_view_epoch_or_seed_gives_another_view(other):
    images, index = make_images(), torch.arange(24)
    first = make_view(images, SIMCLR, index_B=index, size=32, **KEY)
    again = make_view(images, SIMCLR, index_B=index, size=32, **KEY)
    second = make_view(images, SIMCLR, index_B=index, size=32, **(KEY | other))
    assert torch.equal(first, again)
    assert ((first - second).abs().amax(dim=(1, 2, 3)) > 1e-3).all()


@pytest.mark.parametrize("value", [0, 1, 128, 255])
def test_flat_gray_images_stay_finite_and_gray(value):
    images = torch.full((64, 32, 32, 3), value, dtype=torch.uint8)
    x = make_view(images, RECIPES["byol_b"], index_B=torch.arange(64), size=32, **KEY)
    assert x.isfinite().all() and x.min() >= 0 and x.max() <= 1
    assert_close(x[:, 0], x[:, 1])


def test_the_images_themselves_are_left_alone():
    images = make_images()
    before = images.clone()
    make_view(images, RECIPES["byol_b"], index_B=torch.arange(24), size=32, **KEY)
    assert torch.equal(images, before)


def test_autocast_and_grad_mode_outside_change_nothing():
    images, index = make_images(), torch.arange(24)
    plain = make_view(images, SIMCLR, index_B=index, size=32, **KEY)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = make_view(images, SIMCLR, index_B=index, size=32, **KEY)
    assert mixed.dtype == torch.float32 and torch.equal(mixed, plain)


def test_view_can_feed_a_network_that_is_trained():
    images = make_images(4)
    with torch.inference_mode():
        params = drawn(images, SIMCLR)
    x = apply_parameters(images, params, 32)
    weight = torch.ones(1, 3, 3, 3, requires_grad=True)
    torch.nn.functional.conv2d(x, weight).sum().backward()
    assert weight.grad.isfinite().all()


def test_eval_view_of_fitting_images_is_the_images():
    images = make_images(3)
    assert torch.equal(eval_view(images, 32), images.permute(0, 3, 1, 2).float() / 255)


@pytest.mark.parametrize("height,width,size", [(48, 32, 16), (20, 50, 32), (33, 32, 32)])
def test_eval_view_is_resize_and_center_crop(height, width, size):
    images = make_images(3, height=height, width=width)
    x = images.permute(0, 3, 1, 2).float() / 255
    want = tv.center_crop(tv.resize(x, [size], antialias=True), [size, size])
    assert_close(eval_view(images, size), want)


def test_eval_recipe_is_the_eval_view_of_square_images():
    images, index = make_images(5), torch.arange(5)
    view = make_view(images, RECIPES["eval"], index_B=index, size=24, **KEY)
    assert_close(view, eval_view(images, 24))


def test_images_of_another_type_are_refused():
    with pytest.raises(TypeError, match="uint8"):
        make_view(torch.rand(2, 8, 8, 3).double(), SIMCLR, index_B=torch.arange(2), size=8, **KEY)


def test_view_without_pixels_is_refused():
    with pytest.raises(UserError, match="size=0"):
        make_view(make_images(2), SIMCLR, index_B=torch.arange(2), size=0, **KEY)


def test_views_of_one_recipe_have_draws_of_their_own_at_its_size():
    images, index = make_images(8), torch.arange(8)
    recipes = expand((ViewRecipe(size=16, count=3),))
    views = [
        make_view(images, r, index_B=index, size=r.size, **(KEY | {"view": v}))
        for v, r in enumerate(recipes)
    ]
    assert all(view.shape == (8, 3, 16, 16) for view in views)
    for a, b in itertools.combinations(views, 2):
        assert ((a - b).abs().amax(dim=(1, 2, 3)) > 1e-3).all()


@pytest.mark.parametrize("side", [1, 2, 3])
def test_no_rectangle_of_a_tiny_image_is_empty(side):
    torch.manual_seed(0)
    uniform_BK = torch.rand(500, geometry.CROP_SLOTS, dtype=torch.float64)
    boxes = geometry.random_boxes(uniform_BK, side, side, (0.08, 1.0), (3 / 4, 4 / 3))
    for edge_B in (boxes.height_B, boxes.width_B):
        assert edge_B.min() >= 1 and edge_B.max() <= side


@pytest.mark.parametrize("recipe", ["weak", "simclr"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_crops_become_the_view_that_their_parameters_describe(recipe, dtype):
    """With and without colors, a view of crops that need no cutting is that of whole images."""
    images_BHWC = torch.randint(0, 256, (12, 20, 20, 3), dtype=torch.uint8)
    drawn = {"seed": 1, "epoch": 0, "index_B": torch.arange(12), "view": 0}
    params = view_parameters(RECIPES[recipe], **drawn, height=20, width=20)
    zero_B, side_B = torch.zeros(12, dtype=torch.int64), torch.full((12,), 20)
    whole = {"top_B": zero_B, "left_B": zero_B, "height_B": side_B, "width_B": side_B}
    params = replace(params, **whole)
    crops_BCHW = images_BHWC.permute(0, 3, 1, 2)
    if dtype == torch.float32:
        crops_BCHW = crops_BCHW / 255
    view_BCHW = apply_to_crops(crops_BCHW, params)
    assert view_BCHW.is_contiguous() and 0 < params.flip_B.sum() < 12
    torch.testing.assert_close(view_BCHW, apply_parameters(images_BHWC, params, 20))
