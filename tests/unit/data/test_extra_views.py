import dataclasses

import pytest
import torch

from ssdistill.data.batch import Batch
from ssdistill.data.extra import EXTRA, NEIGHBOR_VIEWS, extra_views
from ssdistill.data.recipes import RECIPES, ViewRecipe
from ssdistill.data.views import make_view
from ssdistill.errors import UserError

SIZE, SEED = 12, 7
RECIPES_2 = (RECIPES["weak"], RECIPES["simclr"])


def make_batch(step=0, count=6, epoch=2):
    generator = torch.Generator().manual_seed(0)
    images, neighbors = torch.randint(
        0, 256, (2, count, 16, 16, 3), dtype=torch.uint8, generator=generator
    )
    return Batch(images, torch.arange(count) * 3 + 40, epoch, step, 10, neighbors)


def make_views(batch, recipes=RECIPES_2):
    return [view_of(batch.images_BHWC, batch, r, v) for v, r in enumerate(recipes)]


def view_of(images, batch, recipe, view):
    key = {"seed": SEED, "epoch": batch.epoch, "index_B": batch.index_B, "view": view}
    return make_view(images, recipe, size=recipe.size or SIZE, **key)


def extras(names, batch, recipes=RECIPES_2, **changed):
    arguments = {"seed": SEED, "size": SIZE} | changed
    found = extra_views(names, make_views(batch, recipes), batch, recipes, **arguments)
    return dict(zip([name for name in EXTRA if name in names], found, strict=True))


def pasted(mixed, view):
    """Which pixels of a mixture are not those of the view, (H, W); of all images the same."""
    other_BHW = (mixed != view).any(dim=1)
    assert (other_BHW == other_BHW[0]).all()
    return other_BHW[0]


def test_no_names_no_views():
    assert extras((), make_batch()) == {}


def test_views_come_in_the_order_of_the_list_whatever_the_order_asked():
    batch = make_batch()
    straight = extra_views(EXTRA, make_views(batch), batch, RECIPES_2, seed=SEED, size=SIZE)
    reverse = extra_views(EXTRA[::-1], make_views(batch), batch, RECIPES_2, seed=SEED, size=SIZE)
    assert len(straight) == len(EXTRA)
    assert all(torch.equal(a, b) for a, b in zip(straight, reverse, strict=True))


@pytest.mark.parametrize("name", EXTRA)
def test_a_view_is_the_same_alone_and_among_others(name):
    assert torch.equal(extras((name,), make_batch())[name], extras(EXTRA, make_batch())[name])


def test_rotations_turn_the_first_view_in_its_plane():
    batch = make_batch()
    view = make_views(batch)[0]
    turned = extras(EXTRA[:3], batch)
    # A quarter turn against the clock brings the right edge to the top.
    assert torch.equal(turned["rotated_90"][..., 0, :], view[..., :, -1])
    assert torch.equal(turned["rotated_180"], view.flip(2, 3))
    assert torch.equal(turned["rotated_270"][..., 0, :], view[..., :, 0].flip(2))


def test_rotations_need_no_neighbors():
    batch = dataclasses.replace(make_batch(), neighbors_BHWC=None)
    assert len(extras(EXTRA[:3], batch)) == 3


@pytest.mark.parametrize("name", sorted(NEIGHBOR_VIEWS))
def test_a_view_of_neighbors_without_any_says_so(name):
    batch = dataclasses.replace(make_batch(), neighbors_BHWC=None)
    with pytest.raises(ValueError, match=f"{name}: the loader has no neighbors; pass neighbors"):
        extras((name,), batch)


def test_neighbors_are_views_by_the_first_and_the_last_recipe_with_draws_of_their_own():
    batch = make_batch()
    found = extras(("neighbor_0", "neighbor_1"), batch)
    first = view_of(batch.neighbors_BHWC, batch, RECIPES["weak"], view=2)
    last = view_of(batch.neighbors_BHWC, batch, RECIPES["simclr"], view=3)
    assert torch.equal(found["neighbor_0"], first)
    assert torch.equal(found["neighbor_1"], last)


def test_neighbors_of_one_recipe_are_two_different_views():
    found = extras(("neighbor_0", "neighbor_1"), make_batch(), (RECIPES["weak"],))
    difference_B = (found["neighbor_0"] - found["neighbor_1"]).abs().amax(dim=(1, 2, 3))
    assert (difference_B > 1e-3).all()


def test_small_crops_do_not_decide_how_neighbors_are_seen():
    batch = make_batch()
    small = ViewRecipe(scale=(0.05, 0.1), size=6)
    found = extras(("neighbor_0", "neighbor_1"), batch, (small, *RECIPES_2, small))
    first = view_of(batch.neighbors_BHWC, batch, RECIPES["weak"], view=4)
    last = view_of(batch.neighbors_BHWC, batch, RECIPES["simclr"], view=5)
    assert torch.equal(found["neighbor_0"], first)
    assert torch.equal(found["neighbor_1"], last)


def test_views_larger_than_the_encoders_are_the_full_ones():
    large = ViewRecipe(size=16)
    found = extras(("neighbor_1",), make_batch(), (large, RECIPES["weak"]))
    assert found["neighbor_1"].shape[-1] == 16


@pytest.mark.parametrize("step", range(12))
def test_cutmix_is_the_first_view_with_one_rectangle_of_the_neighbor(step):
    batch = make_batch(step)
    found = extras(("neighbor_0", "cutmix"), batch)
    view = make_views(batch)[0]
    taken_HW = pasted(found["cutmix"], view)
    rows, columns = (taken_HW.any(dim=d).nonzero()[:, 0] for d in (1, 0))
    assert len(rows) and not taken_HW.all()
    assert taken_HW[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    assert torch.equal(torch.where(taken_HW, found["neighbor_0"], view), found["cutmix"])


@pytest.mark.parametrize("step", range(12))
def test_the_share_is_that_of_the_pixels_left(step):
    batch = make_batch(step)
    mixed = extras(("cutmix",), batch)["cutmix"]
    left = 1 - pasted(mixed, make_views(batch)[0]).double().mean().item()
    assert batch.cutmix_fraction == pytest.approx(left, abs=1e-12)
    assert isinstance(batch.cutmix_fraction, float)


def test_shares_and_rectangles_change_with_the_step_and_the_seed_only():
    def drawn(step=0, seed=SEED, count=6):
        batch = make_batch(step, count)
        mixed = extras(("cutmix",), batch, seed=seed)["cutmix"]
        return pasted(mixed, make_views(batch)[0])

    assert torch.equal(drawn(), drawn())
    # Another process has other images, and the same rectangle.
    assert torch.equal(drawn(), drawn(count=3))
    assert not torch.equal(drawn(), drawn(step=1))
    assert not torch.equal(drawn(), drawn(seed=8))


def test_the_share_is_left_alone_where_nothing_is_mixed():
    batch = make_batch()
    extras(("neighbor_0", "rotated_90"), batch)
    assert batch.cutmix_fraction is None


def test_the_first_view_itself_is_left_alone():
    batch = make_batch()
    views = make_views(batch)
    before = [view.clone() for view in views]
    extra_views(EXTRA, views, batch, RECIPES_2, seed=SEED, size=SIZE)
    assert all(torch.equal(a, b) for a, b in zip(views, before, strict=True))


def test_mixing_a_small_first_view_is_refused():
    with pytest.raises(
        UserError, match=r"first view must have full size.*\(12x12 pixels, got 6x6\)"
    ):
        extras(("cutmix",), make_batch(), (ViewRecipe(size=6), RECIPES["weak"]))


def test_no_global_generator_is_read_or_advanced():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = extras(EXTRA, make_batch())
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(1)
    assert all(torch.equal(a, first[name]) for name, a in extras(EXTRA, make_batch()).items())
