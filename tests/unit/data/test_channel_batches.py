"""Batches, plans, extra views and mixtures of images of five channels and two sides."""

import numpy as np
import pytest
import torch

from ssdistill.data import loader as loader_module
from ssdistill.data.batch import Batch, Crops
from ssdistill.data.extra import check_rotations, extra_views
from ssdistill.data.image_set import ImageSet
from ssdistill.data.loader import Loader
from ssdistill.data.mixing import MixSettings, mix_views
from ssdistill.data.recipes import RECIPES, ViewRecipe
from ssdistill.data.recipes_of_images import channels_of, replacement_notice, suited
from ssdistill.data.view_plan import ViewPlan
from ssdistill.data.view_size import area, fits_into, largest
from ssdistill.data.views import make_view
from ssdistill.distill.pairing import resolve_pairs
from ssdistill.errors import UserError

SIZE = (12, 20)
WEAK, STRONG = (RECIPES[name].for_channels(5) for name in ("weak", "strong"))


class Fractions(ImageSet):
    """Twelve images of five channels: what is stored is larger than what networks take."""

    place, channel_names, mean, std = "here", None, (0.5,) * 5, (0.25,) * 5

    def __init__(self):
        generator = np.random.default_rng(0)
        self._stored = generator.random((12, 16, 24, 5), dtype=np.float32)
        self.images = self._stored[:, 2:14, 2:22]

    @property
    def stored(self):
        return self._stored


@pytest.fixture(params=["resident", "mapped"])
def memory(request, monkeypatch):
    if request.param == "mapped":
        monkeypatch.setattr(loader_module, "RESIDENT_BYTES", 0)


def make_batch(count=6):
    generator = torch.Generator().manual_seed(0)
    images, neighbors = torch.rand(2, count, 16, 24, 5, generator=generator)
    return Batch(images, torch.arange(count), 2, 3, 10, neighbors)


def test_training_views_are_cut_from_all_that_is_stored(memory):
    images = Fractions()
    batch = Loader(images, 4, seed=0, num_steps=3, neighbors=np.arange(12)[:, None]).batch(1)
    assert batch.images_BHWC.dtype == torch.float32
    assert np.array_equal(batch.images_BHWC, images.stored[batch.index_B])
    assert torch.equal(batch.neighbors_BHWC, batch.images_BHWC)


def test_a_plan_makes_views_of_its_size_and_of_the_recipes_own():
    small = STRONG.model_copy(update={"size": (6, 9)})
    plan = ViewPlan((STRONG, WEAK, small), 7, SIZE, ("neighbor_0", "neighbor_1", "cutmix"))
    views = plan.views(batch := make_batch())
    shapes = [(6, 5, 12, 20)] * 2 + [(6, 5, 6, 9)] + [(6, 5, 12, 20)] * 3
    assert [tuple(view.shape) for view in views] == shapes
    key = {"seed": 7, "epoch": 2, "index_B": batch.index_B}
    assert torch.equal(views[2], make_view(batch.images_BHWC, small, view=2, size=(6, 9), **key))
    # Neighbors have the recipes of the first and the last view of full size.
    last = make_view(batch.neighbors_BHWC, WEAK, view=4, size=SIZE, **key)
    assert torch.equal(views[4], last)
    pasted_BHW = (views[5] != views[0]).any(1)
    assert (pasted_BHW == pasted_BHW[0]).all()
    assert batch.cutmix_fraction == pytest.approx(1 - pasted_BHW[0].float().mean().item())


def test_crops_of_a_plan_are_finished_by_what_was_drawn_for_them():
    plan, batch = ViewPlan((STRONG,), 7, SIZE), make_batch()
    size_B = torch.full((6,), 16), torch.full((6,), 24)
    params = plan.draw(plan.plain[0], batch.epoch, batch.index_B, *size_B)
    crops_BCHW = torch.rand(6, 5, *SIZE)
    batch.images_BHWC, batch.crops = None, {0: Crops(crops_BCHW, params)}
    (view,) = plan.views(batch)
    assert view.shape == crops_BCHW.shape and not torch.equal(view, crops_BCHW)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixtures_have_the_same_rectangle_relative_to_height_and_width(kind):
    large, small = torch.rand(6, 5, 12, 20), torch.rand(6, 5, 6, 10)
    seen = False
    for step in range(8):
        mixed = mix_views([large, small], MixSettings(kind=kind), seed=1, step=step)
        changed = [(a != b).any(1)[0] for a, b in zip(mixed, (large, small), strict=True)]
        assert [m.shape for m in mixed] == [large.shape, small.shape]
        rows = [c.any(1).float().mean().item() for c in changed]
        columns = [c.any(0).float().mean().item() for c in changed]
        # Two edges, each rounded to whole pixels of either view.
        assert abs(rows[0] - rows[1]) <= 1 / 12 + 1 / 6
        assert abs(columns[0] - columns[1]) <= 1 / 20 + 1 / 10
        seen |= columns[0] > 0
    assert seen


@pytest.mark.parametrize("name", ["rotated_90", "rotated_180", "rotated_270"])
def test_rotations_are_refused_where_they_would_change_the_shape(name):
    with pytest.raises(UserError, match=f"{name} requires a square first view, got 12x20"):
        extra_views((name,), [torch.rand(2, 5, 12, 20)], make_batch(2), (WEAK,), seed=0, size=SIZE)
    check_rotations((name,), 12)
    check_rotations(("neighbor_0",), SIZE)


def test_a_small_first_view_is_told_by_both_sides():
    plan = ViewPlan((WEAK.model_copy(update={"size": (6, 20)}), WEAK), 7, SIZE, ("cutmix",))
    with pytest.raises(UserError, match="\(12x20 pixels, got 6x20\)"):
        plan.views(make_batch())


def test_sizes_are_compared_by_their_pixels():
    assert (area(3), area((3, 5))) == (9, 15)
    assert largest([4, (3, 5), (2, 9), (9, 2)]) == (2, 9)
    assert fits_into((3, 5), (3, 6)) and fits_into(3, (3, 5)) and not fits_into((5, 3), (3, 6))


def test_views_of_full_size_are_paired_with_the_others():
    assert resolve_pairs("other", [(12, 20), 8, (12, 20)]) == [(0, 2), (1, 0), (1, 2), (2, 0)]
    assert resolve_pairs("other", [16, 8]) == [(1, 0)]


def test_recipes_suit_the_images():
    images = Fractions()
    assert channels_of(images) == (5, None) and suited(RECIPES["strong"], images) == STRONG
    assert replacement_notice(images).startswith("5 channels: ")
    images.mean, images.channel_names = (0.5,) * 3, ("red", "green", "blue")
    assert suited(RECIPES["strong"], images) is RECIPES["strong"]
    assert replacement_notice(images) is None
    images.channel_names = ("a", "b", "c")
    assert suited(ViewRecipe(), images).channels == 3
