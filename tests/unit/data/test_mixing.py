import numpy as np
import pytest
import torch
from pydantic import ValidationError

from ssdistill.data.mixing import MixSettings, centered_box, mix_views, paste

MIXUP, CUTMIX = MixSettings(), MixSettings(kind="cutmix")
COUNT = 12


def numbered(size=8, offset=0.0):
    """Views whose every pixel is the number of the image, and of the view as a fraction."""
    return torch.arange(COUNT, dtype=torch.float32).view(-1, 1, 1, 1).expand(
        -1, 3, size, size
    ) + torch.tensor(offset)


def partners_of(mixed_CHW):
    """Numbers of the images that a mixture of :func:`numbered` views by CutMix is made of."""
    return set(mixed_CHW.flatten().tolist())


def decoded(step, count=COUNT):
    """Share and partners of one mixing, found from what it does to one-hot images."""
    eye = torch.eye(count)
    (mixed,) = mix_views([eye.view(count, 1, 1, count)], MIXUP, seed=0, step=step)
    # An image may be its own partner, and is then left as it is.
    share = mixed.view(count, count).diagonal().min()
    rest = mixed.view(count, count) - share * eye
    torch.testing.assert_close(rest.sum(dim=1), (1 - share).expand(count))
    return share.item(), rest.argmax(dim=1)


def test_mixup_is_one_share_of_each_image_and_the_rest_of_its_partner():
    x = torch.rand(COUNT, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    share, partner = decoded(step=4)
    (mixed,) = mix_views([x], MIXUP, seed=0, step=4)
    assert 0 < share < 1
    assert torch.equal(partner.sort().values, torch.arange(COUNT))
    torch.testing.assert_close(mixed, share * x + (1 - share) * x[partner])


@pytest.mark.parametrize("settings", [MIXUP, CUTMIX])
def test_all_views_have_the_same_partners_share_and_rectangle(settings):
    for step in range(8):
        first, second, third = mix_views(
            [numbered(), numbered(offset=100.0), numbered()], settings, seed=1, step=step
        )
        assert torch.equal(first, third)
        torch.testing.assert_close(first + 100, second)


def test_smaller_views_get_the_same_rectangle_relative_to_their_side():
    seen = 0
    for step in range(12):
        large, small = mix_views([numbered(64), numbered(16)], CUTMIX, seed=1, step=step)
        own = torch.arange(COUNT).view(-1, 1, 1)
        moved = (large[:, 0] != own).any(dim=(1, 2))
        taken_large = (large[moved][:, 0] != own[moved])[0].double()
        taken_small = (small[moved][:, 0] != own[moved])[0].double()
        # Edges are rounded to whole pixels of either view, at most half a pixel each.
        for axis in (0, 1):
            wide = taken_large.amax(dim=axis).nonzero()[:, 0] / 64
            narrow = taken_small.amax(dim=axis).nonzero()[:, 0] / 16
            if len(wide) and len(narrow):
                seen += 1
                assert abs(wide[0] - narrow[0]) <= 0.5 / 64 + 0.5 / 16
                assert abs(wide[-1] + 1 / 64 - narrow[-1] - 1 / 16) <= 0.5 / 64 + 0.5 / 16
    assert seen >= 12


def test_cutmix_takes_a_rectangle_from_one_partner_only():
    (mixed,) = mix_views([numbered(16)], CUTMIX, seed=1, step=3)
    assert all(len(partners_of(image)) <= 2 for image in mixed)
    assert all(i in partners_of(image) for i, image in enumerate(mixed))
    assert any(len(partners_of(image)) == 2 for image in mixed)


def test_cutmixs_rectangle_takes_what_the_share_leaves():
    # So narrow a Beta always draws a half, and a half is a square with sides of 0.71.
    half = MixSettings(kind="cutmix", alpha=1e8)
    sides = []
    for step in range(200):
        (mixed,) = mix_views([numbered(100)], half, seed=0, step=step)
        taken = mixed[:, 0] != torch.arange(COUNT).view(-1, 1, 1)
        rows = taken.any(dim=0).any(dim=1).nonzero()[:, 0]
        if len(rows) and rows[0] > 0 and rows[-1] < 99:
            sides.append(len(rows))
    assert sides and set(sides) <= {70, 71}


@pytest.mark.parametrize("settings", [MIXUP, CUTMIX])
def test_a_mixture_depends_on_seed_and_step_alone(settings):
    views = [torch.rand(COUNT, 3, 8, 8)]

    def mixed(**key):
        return mix_views(views, settings, **{"seed": 5, "step": 2} | key)[0]

    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    first, state = mixed(), torch.get_rng_state()
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    assert torch.equal(mixed(), first)
    torch.manual_seed(0)
    mixed()
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(mixed(step=3), first)
    assert not torch.equal(mixed(seed=6), first)


@pytest.mark.parametrize("step", range(5))
def test_the_share_does_not_depend_on_how_many_images_there_are(step):
    assert decoded(step, count=64)[0] == decoded(step)[0]


def test_the_views_given_are_left_alone():
    views = [torch.rand(COUNT, 3, 8, 8)]
    before = views[0].clone()
    for settings in (MIXUP, CUTMIX):
        mix_views(views, settings, seed=0, step=0)
    assert torch.equal(views[0], before)


def test_probability_is_the_share_of_batches_mixed():
    views = [numbered()]
    settings = MixSettings(probability=0.3)
    mixed = sum(
        not torch.equal(mix_views(views, settings, seed=0, step=step)[0], views[0])
        for step in range(1000)
    )
    # 300 with a standard deviation of 14.5.
    assert abs(mixed - 300) < 60


def test_probability_does_not_change_how_a_mixed_batch_is_mixed():
    views = [numbered()]
    for step in range(20):
        (some,) = mix_views(views, MixSettings(probability=0.5), seed=0, step=step)
        (always,) = mix_views(views, MIXUP, seed=0, step=step)
        assert torch.equal(some, always) or torch.equal(some, views[0])


def test_zero_probability_hands_the_views_on():
    views = [numbered(), numbered(4)]
    for step in range(20):
        mixed = mix_views(views, MixSettings(probability=0.0), seed=0, step=step)
        assert all(a is b for a, b in zip(mixed, views, strict=True))


@pytest.mark.parametrize(
    "area,center,edges",
    [
        (0.25, (0.5, 0.5), (0.25, 0.75, 0.25, 0.75)),
        (0.25, (0.0, 0.5), (0.0, 0.25, 0.25, 0.75)),
        (0.25, (0.9, 0.9), (0.65, 1.0, 0.65, 1.0)),
        (1.0, (0.5, 0.5), (0.0, 1.0, 0.0, 1.0)),
        (0.0, (0.3, 0.6), (0.3, 0.3, 0.6, 0.6)),
    ],
)
def test_rectangles_are_squares_about_their_center_clipped_at_the_edges(area, center, edges):
    assert centered_box(area, *center) == pytest.approx(edges)


@pytest.mark.parametrize(
    "box,share",
    [
        ((0.25, 0.75, 0.0, 0.5), 0.75),
        ((0.0, 1.0, 0.0, 1.0), 0.0),
        ((0.5, 0.5, 0.2, 0.9), 1.0),
        ((0.4, 1.0, 0.0, 1.0), 0.375),  # 0.4 of 8 rows is rounded to 3.
    ],
)
def test_pasting_reports_the_share_of_pixels_left(box, share):
    pasted, left = paste(torch.zeros(2, 3, 8, 8), torch.ones(2, 3, 8, 8), box)
    assert left == share
    assert pasted.mean().item() == pytest.approx(1 - share)


@pytest.mark.parametrize(
    "values", [{"kind": "mixdown"}, {"alpha": 0.0}, {"probability": 1.1}, {"lambda": 0.5}]
)
def test_impossible_settings_are_refused_by_name(values):
    with pytest.raises(ValidationError, match=next(iter(values))):
        MixSettings(**values)
