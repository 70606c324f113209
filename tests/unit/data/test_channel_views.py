"""Views of images whose channels are no colors, and of sizes that are no squares."""

import pytest
import torch
from pydantic import ValidationError
from torchvision.transforms.v2 import functional as tv

from ssdistill.data import channel_color, color
from ssdistill.data.recipes import RECIPES, RGB, ViewRecipe, replaced_by
from ssdistill.data.view_parameters import NO_CHANNEL, view_parameters
from ssdistill.data.views import apply_parameters, apply_to_crops, eval_view, make_view
from ssdistill.errors import UserError
from ssdistill.settings import height_width

KEY = {"seed": 3, "epoch": 1, "view": 0}
SIMCLR = RECIPES["simclr"]
BANDS = SIMCLR.for_channels(5)
ALWAYS = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "flip": 0.0}


def floats(count=12, channels=5, height=24, width=24, seed=0):
    """Smooth images (N, H, W, C) float32 in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(count, channels, 4, 4, generator=generator)
    return tv.resize(x, [height, width]).permute(0, 2, 3, 1).contiguous()


def view_of(images, recipe, size=24, **key):
    return make_view(images, recipe, index_B=torch.arange(len(images)), size=size, **(KEY | key))


def drawn(images, recipe, **key):
    height, width = images.shape[1:3]
    index = torch.arange(len(images))
    return view_parameters(recipe, index_B=index, height=height, width=width, **(KEY | key))


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 13])
@pytest.mark.parametrize("size", [24, (16, 40), (13, 15)])
def test_a_view_has_the_channels_of_its_images_and_the_size_asked_for(channels, size):
    recipe = SIMCLR.for_channels(channels)
    x = view_of(floats(channels=channels, height=20, width=36), recipe, size)
    assert x.shape == (12, channels, *height_width(size))
    assert x.dtype == torch.float32 and x.is_contiguous() and x.min() >= 0 and x.max() <= 1


def test_bytes_and_fractions_give_the_same_view():
    images = (floats() * 255).round().to(torch.uint8)
    of_bytes = view_of(images, BANDS)
    torch.testing.assert_close(of_bytes, view_of(images / 255, BANDS), atol=1e-4, rtol=0)


def test_fractions_are_left_as_they_are():
    images = floats()
    before = images.clone()
    view_of(images, BANDS)
    assert torch.equal(eval_view(images, 24), before.permute(0, 3, 1, 2)) and images.equal(before)
    one = floats(channels=1)
    eval_view(one, 24).zero_()
    assert one.max() > 0.5


def test_crops_of_fractions_are_cut_and_finished_alike():
    images = floats(height=30, width=50)
    params = drawn(images, BANDS)
    crops = [
        tv.resized_crop(image.permute(2, 0, 1), *map(int, box), [16, 40], antialias=True)
        for image, *box in zip(images, *vars(params.boxes).values(), strict=True)
    ]
    whole = apply_parameters(images, params, (16, 40))
    torch.testing.assert_close(apply_to_crops(torch.stack(crops), params), whole)


def test_a_wide_view_equals_torchvisions():
    images = (floats(channels=3, height=30, width=50) * 255).round().to(torch.uint8)
    params = drawn(images, ViewRecipe(scale=(0.1, 1.0), blur=1.0))
    views = apply_parameters(images, params, (16, 40))
    sigma = params.blur_sigma_B.tolist()
    for i, image in enumerate(images):
        box = [int(edge[i]) for edge in vars(params.boxes).values()]
        x = tv.resized_crop(image.permute(2, 0, 1) / 255, *box, [16, 40], antialias=True)
        x = tv.horizontal_flip(x) if params.flip_B[i] else x
        want = tv.gaussian_blur(x, [3, 3], [sigma[i]] * 2)
        torch.testing.assert_close(views[i], want, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "source, target, resized",
    [
        ((30, 50), (16, 40), (24, 40)),
        ((50, 30), (16, 40), (66, 40)),
        ((30, 60), (20, 20), (20, 40)),
        ((31, 31), (32, 64), (64, 64)),
        ((7, 1), (2, 9), (63, 9)),
        ((30, 100), (16, 40), (16, 53)),
    ],
)
def test_the_evaluation_view_covers_its_size_and_is_its_center(source, target, resized):
    images = floats(2, 2, *source)
    x = tv.resize(images.permute(0, 3, 1, 2), list(resized), antialias=True)
    want = tv.center_crop(x, list(target)).clamp(0, 1)
    torch.testing.assert_close(eval_view(images, target), want)


def test_brightness_and_contrast_are_drawn_for_each_channel_in_either_order():
    recipe = ViewRecipe(**ALWAYS, jitter=1.0, brightness=0.4, contrast=0.4).for_channels(5)
    images = floats()
    params = drawn(images, recipe)
    views, firsts = apply_parameters(images, params, 24), set()
    for i, image in enumerate(images):
        order = [k for k in params.order_B4[i].tolist() if k in (color.BRIGHTNESS, color.CONTRAST)]
        firsts.add(order[0])
        for channel in range(5):
            x, factors = image[..., channel], params.factor_BC2[i, channel].tolist()
            for number in order:
                target = x.mean() if number == color.CONTRAST else torch.tensor(0.0)
                x = (factors[number] * x + (1 - factors[number]) * target).clamp(0, 1)
            torch.testing.assert_close(views[i, channel], x, atol=1e-5, rtol=0)
    assert firsts == {color.BRIGHTNESS, color.CONTRAST}
    assert params.factor_BC2.min() >= 0.6 and params.factor_BC2.max() <= 1.4
    assert len(params.factor_BC2.unique()) == params.factor_BC2.numel()


def test_images_without_jitter_keep_their_brightness():
    recipe = ViewRecipe(**ALWAYS, jitter=0.5, brightness=0.4, hue=0.1).for_channels(5)
    images = floats(24)
    params = drawn(images, recipe)
    same_B = (view_of(images, recipe) - images.permute(0, 3, 1, 2)).flatten(1).abs().amax(1) < 1e-6
    assert torch.equal(same_B, ~params.jitter_B) and same_B.any() and not same_B.all()


def test_one_channel_has_the_common_factors():
    recipe = ViewRecipe(**ALWAYS, jitter=1.0, brightness=0.4)
    images = floats(channels=1)
    factor_B111 = drawn(images, recipe).factor_B4[:, 0].view(-1, 1, 1, 1)
    want = (images.permute(0, 3, 1, 2) * factor_B111).clamp(0, 1)
    torch.testing.assert_close(view_of(images, recipe), want)


def test_a_dropped_channel_is_its_mean_and_every_channel_is_dropped_sometimes():
    recipe = ViewRecipe(**ALWAYS, grayscale=0.5).for_channels(5)
    images = floats(200)
    dropped_B = drawn(images, recipe).dropped_B
    counts = torch.bincount(dropped_B + 1, minlength=6).tolist()
    assert 75 < counts[0] < 125 and min(counts[1:]) > 8
    x_BCHW = images.permute(0, 3, 1, 2)
    for i in range(20):
        want = x_BCHW[i].clone()
        if dropped_B[i] != NO_CHANNEL:
            want[dropped_B[i]] = want[dropped_B[i]].mean()
        torch.testing.assert_close(view_of(images[:20], recipe)[i], want)


def test_noise_has_the_drawn_fraction_of_each_channels_deviation():
    recipe = ViewRecipe(**ALWAYS, jitter=1.0, hue=0.2).for_channels(5)
    images = 0.3 + 0.4 * floats(6, height=96, width=96)
    images[..., 4] = 0.5 + 0.01 * (images[..., 4] - 0.5)
    params, x_BCHW = drawn(images, recipe), images.permute(0, 3, 1, 2)
    noise_BCN = (view_of(images, recipe, 96) - x_BCHW).flatten(2)
    want_BC = x_BCHW.flatten(2).std(2) * params.noise_B[:, None]
    torch.testing.assert_close(noise_BCN.std(2), want_BC, rtol=0.05, atol=1e-5)
    assert (noise_BCN.mean(2).abs() < 0.05 * want_BC).all()
    assert params.noise_B.min() > 0 and 0.1 < params.noise_B.max() < 0.2
    # Normal: of 68, 95 and 99.7 percent within one, two and three deviations.
    standard = (noise_BCN / want_BC[..., None]).abs().flatten()
    for limit, share in ((1, 0.683), (2, 0.954), (3, 0.997)):
        assert (standard < limit).float().mean().item() == pytest.approx(share, abs=0.01)
    halves = noise_BCN.flatten(1).unflatten(1, (2, -1))
    assert abs(torch.corrcoef(torch.cat([halves[:, 0], halves[:, 1]]))[0, 6]) < 0.02


def test_every_image_has_noise_of_its_own():
    recipe = ViewRecipe(**ALWAYS, jitter=1.0, hue=0.2).for_channels(5)
    views = view_of(floats(1).expand(4, -1, -1, -1), recipe)
    noise_BN = (views - views.mean(0)).flatten(1)
    assert torch.corrcoef(noise_BN).fill_diagonal_(0).max() < 0.5


def test_a_channel_is_dropped_of_crops_that_nothing_else_happens_to():
    images = (255 * floats()).to(torch.uint8)
    params = drawn(images, ViewRecipe(**ALWAYS, drop=1.0).for_channels(5))
    views = apply_to_crops(images.permute(0, 3, 1, 2), params)
    flat_BC = views.flatten(2).std(2) < 1e-6
    assert torch.equal(flat_BC, torch.nn.functional.one_hot(params.dropped_B, 5).bool())


@pytest.mark.parametrize("other", [{"seed": 4}, {"epoch": 2}, {"view": 1}])
def test_a_view_is_a_function_of_seed_epoch_index_and_view(other):
    images = floats(32)
    first = view_of(images, BANDS)
    assert torch.equal(first, view_of(images, BANDS))
    assert not torch.equal(first, view_of(images, BANDS, **other))
    rows = torch.tensor([17, 3, 30])
    few = make_view(images[rows], BANDS, index_B=rows, size=24, **KEY)
    torch.testing.assert_close(few, first[rows])


def test_what_was_drawn_before_is_drawn_still():
    images = floats(channels=3)
    plain, more = drawn(images, SIMCLR), drawn(images, SIMCLR.model_copy(update={"noise": 0.1}))
    bands = drawn(images, SIMCLR.for_channels(5))
    for name in ("top_B", "left_B", "height_B", "width_B", "flip_B", "jitter_B", "order_B4"):
        assert getattr(plain, name).equal(getattr(more, name))
        assert getattr(plain, name).equal(getattr(bands, name))
    assert plain.factor_B4.equal(more.factor_B4) and plain.blur_sigma_B.equal(bands.blur_sigma_B)
    assert plain.noise_B is None and plain.factor_BC2 is None


def test_rgb_may_have_noise_and_dropped_channels_too():
    images = floats(channels=3)
    plain = view_of(images, SIMCLR)
    changed = view_of(images, SIMCLR.model_copy(update={"noise": 0.3, "drop": 0.5}))
    params = drawn(images, SIMCLR)
    alike_B = (plain == changed).flatten(1).all(1)
    assert alike_B.any() and not alike_B.all() and not alike_B[params.jitter_B].any()


@pytest.mark.parametrize(
    "channels, changes",
    [(5, {"saturation": 0.1, "jitter": 1.0}), (1, {"hue": 0.1, "jitter": 1.0}),
     (4, {"grayscale": 0.1}), (2, {"drop": 0.1})],
)  # fmt: skip
def test_a_recipe_of_colors_is_refused_for_other_channels(channels, changes):
    images = floats(channels=channels)
    with pytest.raises(UserError, match=rf"recipe is for RGB.*for_channels\({channels}\)"):
        view_of(images, ViewRecipe(**changes))
    with pytest.raises(UserError, match=rf"for_channels\({channels}\)"):
        apply_to_crops(images.permute(0, 3, 1, 2), drawn(images, ViewRecipe(**changes)))


def test_a_recipe_of_another_number_of_channels_is_refused():
    with pytest.raises(UserError, match="recipe is for 5 channels, the images have 4 channels"):
        view_of(floats(channels=4), BANDS)


def test_colors_of_separate_channels_are_refused():
    with pytest.raises(ValidationError, match="saturation, hue and grayscale require RGB"):
        ViewRecipe(channels=3, hue=0.1)


@pytest.mark.parametrize("names", [None, RGB, ("Red", "Green", "Blue")])
def test_recipes_of_rgb_stay(names):
    assert SIMCLR.for_channels(3, names) is SIMCLR and replaced_by(3, names) is None


def test_what_means_nothing_is_replaced():
    bands = SIMCLR.for_channels(5)
    assert (bands.saturation, bands.hue, bands.grayscale) == (0, 0, 0)
    assert (bands.drop, bands.noise, bands.channels) == (SIMCLR.grayscale, SIMCLR.hue, 5)
    assert (bands.brightness, bands.jitter, bands.blur) == (0.8, 0.8, 0.5)
    assert bands.for_channels(5) == bands and not bands.of_colors
    own = ViewRecipe(drop=0.7, noise=0.3, grayscale=0.1, hue=0.1).for_channels(4)
    assert (own.drop, own.noise) == (0.7, 0.3)
    assert SIMCLR.for_channels(3, ("nir", "red", "green")).channels == 3
    gray = SIMCLR.for_channels(1)
    assert (gray.saturation, gray.grayscale, gray.drop, gray.noise) == (0, 0, 0, 0)
    assert gray.channels is None and not gray.of_colors
    assert ViewRecipe.model_validate(bands.model_dump(mode="json")) == bands


@pytest.mark.parametrize(
    "channels, names, text",
    [(5, None, "5 channels: saturation, hue and grayscale mean nothing there and are replaced by "
      "noise and channel dropping"),
     (1, ("nir",), "1 channel: saturation, hue and grayscale mean nothing there and are ignored"),
     (3, ("a", "b", "c"), "3 channels (a, b, c): saturation")],
)  # fmt: skip
def test_the_replacement_is_said(channels, names, text):
    assert replaced_by(channels, names).startswith(text)


def test_settings_at_their_defaults_are_in_no_hash():
    assert not {"drop", "noise", "channels"} & set(SIMCLR.model_dump(mode="json"))
    assert ViewRecipe(noise=0.1).model_dump()["noise"] == 0.1
    assert ViewRecipe(size=(16, 16)).model_dump(mode="json")["size"] == 16
    assert ViewRecipe(size=(16, 32)).model_dump(mode="json")["size"] == [16, 32]


def test_the_blur_kernel_fits_the_shorter_side():
    assert color.blur_kernel_size(None, (40, 200)) == 5
    with pytest.raises(UserError, match="view of 4x40 pixels"):
        color.blur_kernel_size(9, (4, 40))


@pytest.mark.filterwarnings("error")
def test_nothing_to_jitter_is_nothing_to_do():
    images = floats()
    unchanged = view_of(images, BANDS.model_copy(update={**ALWAYS, "jitter": 0.0, "drop": 0.0,
                                                         "blur": 0.0}))  # fmt: skip
    torch.testing.assert_close(unchanged, images.permute(0, 3, 1, 2))
    x_BCN = torch.rand(0, 4, 9)
    channel_color.jitter_channels_(x_BCN, torch.zeros(0, 4).long(), torch.zeros(0, 4, 2))
    assert x_BCN.shape == (0, 4, 9)
