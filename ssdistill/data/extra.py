"""Extra views for single losses: rotations, neighbors, mixtures."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ssdistill.data.batch import Batch
from ssdistill.data.counter_rng import uniform
from ssdistill.data.mixing import centered_box, paste
from ssdistill.data.recipes import ViewRecipe
from ssdistill.data.views import apply_to_crops, make_view
from ssdistill.errors import UserError

EXTRA = (
    "rotated_90",
    "rotated_180",
    "rotated_270",
    "neighbor_0",
    "neighbor_1",
    "cutmix",
)
"""Names of extra views, in the order in which a step passes them on.

``rotated_90`` is the first view turned by 90 degrees, and so on; ``neighbor_0`` and
``neighbor_1`` are views, by the first and the last recipe, of an image like this one;
``cutmix`` is the first view with a rectangle of ``neighbor_0`` in it.
"""

NEIGHBOR_VIEWS = frozenset(("neighbor_0", "neighbor_1", "cutmix"))
"""Extra views built from ``batch.neighbors_BHWC``."""

_BOX = -1
"""View number of these random draws."""


def extra_views(
    names: tuple[str, ...],
    views: list[Tensor],
    batch: Batch,
    recipes: tuple[ViewRecipe, ...],
    *,
    seed: int,
    size: int,
) -> list[Tensor]:
    """Build the extra views called ``names``, in the order of :data:`EXTRA`.

    Neighbors are drawn by (seed, epoch, index), as every view is; the rectangle of ``cutmix``,
    one for the batch and the same in every process, by (seed, step). Where ``cutmix`` is made,
    ``batch.cutmix_fraction`` is set.

    Args:
        views: (B, 3, S, S) in [0, 1], one per recipe.
        recipes: one per view. Neighbors are drawn by the first and the last of a full-size view.
        size: side of a view whose recipe names none, pixels.

    Raises:
        UserError: ``cutmix`` of a first view that is smaller than others.
    """
    view_by_name = {
        name: torch.rot90(views[0], turns, dims=(2, 3))
        for turns, name in enumerate(EXTRA[:3], start=1)
        if name in names
    }
    if NEIGHBOR_VIEWS & set(names):
        view_by_name |= _neighbor_views(names, batch, recipes, seed, size)
    if "cutmix" in names:
        view_by_name["cutmix"], batch.cutmix_fraction = _cutmix(
            views, view_by_name["neighbor_0"], batch, seed
        )
    return [view_by_name[name] for name in EXTRA if name in names]


def _neighbor_views(
    names: tuple[str, ...],
    batch: Batch,
    recipes: tuple[ViewRecipe, ...],
    seed: int,
    size: int,
) -> dict[str, Tensor]:
    key = {"seed": seed, "epoch": batch.epoch, "index_B": batch.number_B}
    view_by_name = {}
    for name, view in neighbor_views(names, recipes, size).items():
        if crops := batch.crops.get(view.number):
            view_by_name[name] = apply_to_crops(crops.pixels_BCHW, crops.params)
        elif batch.neighbors_BHWC is None:
            raise ValueError(
                f"{', '.join(names)}: the loader has no neighbors; pass neighbors to Loader"
            )
        else:
            place = {"view": view.number, "size": view.side}
            view_by_name[name] = make_view(batch.neighbors_BHWC, view.recipe, **place, **key)
    return view_by_name


@dataclass(frozen=True)
class PlannedView:
    """A view to be drawn: its recipe, its number within the step, its side in pixels."""

    recipe: ViewRecipe
    number: int
    side: int


def plain_views(recipes: tuple[ViewRecipe, ...], size: int) -> list[PlannedView]:
    """Return the view of each recipe."""
    return [
        PlannedView(recipe, number, recipe.size or size) for number, recipe in enumerate(recipes)
    ]


def neighbor_views(
    names: tuple[str, ...], recipes: tuple[ViewRecipe, ...], size: int
) -> dict[str, PlannedView]:
    """Return the views of neighbors that the extra views called ``names`` need."""
    if not NEIGHBOR_VIEWS & set(names):
        return {}
    plain = plain_views(recipes, size)
    side = max(view.side for view in plain)
    full = [view.recipe for view in plain if view.side == side]
    planned = {
        "neighbor_0": PlannedView(full[0], len(recipes), side),
        "neighbor_1": PlannedView(full[-1], len(recipes) + 1, side),
    }
    # cutmix takes its rectangle from there.
    needed = {*names, "neighbor_0"} if "cutmix" in names else {*names}
    return {name: view for name, view in planned.items() if name in needed}


def _cutmix(
    views: list[Tensor], neighbor_BCHW: Tensor, batch: Batch, seed: int
) -> tuple[Tensor, float]:
    """BINGO's CutMix (arXiv:2107.01691), and the fraction of it that is the image."""
    if views[0].shape != neighbor_BCHW.shape:
        raise UserError(
            f"views: the first view must have full size to be mixed with neighbors: expected "
            f"{neighbor_BCHW.shape[-1]} pixels, got {views[0].shape[-1]}; reorder views"
        )
    step_1 = torch.tensor([batch.step])
    *three, center_y, center_x = uniform(seed, batch.epoch, step_1, _BOX, 5)[0].tolist()
    # The median of three uniform numbers has the law Beta(2, 2).
    share = sorted(three)[1]
    return paste(views[0], neighbor_BCHW, centered_box(1.0 - share, center_y, center_x))
