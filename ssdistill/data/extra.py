"""Extra views for individual losses: rotations, neighbors, mixtures."""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from ssdistill.data.batch import Batch
from ssdistill.data.counter_rng import uniform
from ssdistill.data.mixing import centered_box, paste
from ssdistill.data.recipes import ViewRecipe
from ssdistill.data.view_size import largest, size_of
from ssdistill.data.views import make_view, view_of_crops
from ssdistill.errors import UserError
from ssdistill.settings import Size, height_width, size_text

EXTRA = (
    "rotated_90",
    "rotated_180",
    "rotated_270",
    "neighbor_0",
    "neighbor_1",
    "cutmix",
)
"""Names of extra views, in the order in which a step passes them to losses.

``rotated_90`` is the first view rotated by 90 degrees, and so on; ``neighbor_0`` and
``neighbor_1`` are views of a neighbor, by the first and the last recipe; ``cutmix`` is the first
view with a rectangle of ``neighbor_0`` pasted in.
"""

NEIGHBOR_VIEWS = frozenset(("neighbor_0", "neighbor_1", "cutmix"))
"""Extra views that require neighbors."""

_BOX = -1
"""View number for random draws of CutMix boxes."""


def extra_views(
    names: tuple[str, ...],
    views: list[Tensor],
    batch: Batch,
    recipes: tuple[ViewRecipe, ...],
    *,
    seed: int,
    size: Size,
) -> list[Tensor]:
    """Build the extra views called ``names``, in the order of :data:`EXTRA`.

    Views of neighbors are drawn by (seed, epoch, index) like all views; the rectangle of
    ``cutmix``, one per batch and equal in all processes, by (seed, step). ``cutmix`` sets
    ``batch.cutmix_fraction``.

    Args:
        views: (B, C, h, w) in [0, 1], one per recipe.
        recipes: one per view. Neighbors use the first and the last recipe of full size.
        size: of views whose recipe has no ``size``.

    Raises:
        UserError: ``cutmix`` with a first view that is not of full size, or rotation of a first
            view that is not square.
    """
    check_rotations(names, size_of(views[0]))
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


def check_rotations(names: Collection[str], size: Size) -> None:
    """Raise UserError for a view that, turned by 90 degrees, has another size."""
    height, width = height_width(size)
    turned = [name for name in EXTRA[:3] if name in names]
    if turned and height != width:
        raise UserError(
            f"views: {turned[0]} requires a square first view, got {size_text(size)}; set a square "
            "data.view_size, or remove the loss that reads rotated views"
        )


def _neighbor_views(
    names: tuple[str, ...],
    batch: Batch,
    recipes: tuple[ViewRecipe, ...],
    seed: int,
    size: Size,
) -> dict[str, Tensor]:
    key = {"seed": seed, "epoch": batch.epoch, "index_B": batch.number_B}
    view_by_name = {}
    for name, view in neighbor_views(names, recipes, size).items():
        if crops := batch.crops.get(view.number):
            view_by_name[name] = view_of_crops(crops)
        elif batch.neighbors_BHWC is None:
            raise ValueError(
                f"{', '.join(names)}: the loader has no neighbors; pass neighbors to Loader"
            )
        else:
            place = {"view": view.number, "size": view.size}
            view_by_name[name] = make_view(batch.neighbors_BHWC, view.recipe, **place, **key)
    return view_by_name


@dataclass(frozen=True)
class PlannedView:
    """A view to draw: its recipe, its number within the step, its size."""

    recipe: ViewRecipe
    number: int
    size: Size


def plain_views(recipes: tuple[ViewRecipe, ...], size: Size) -> list[PlannedView]:
    """Return the view of each recipe."""
    return [
        PlannedView(recipe, number, recipe.size or size) for number, recipe in enumerate(recipes)
    ]


def neighbor_views(
    names: tuple[str, ...], recipes: tuple[ViewRecipe, ...], size: Size
) -> dict[str, PlannedView]:
    """Return the views of neighbors required by the extra views called ``names``."""
    if not NEIGHBOR_VIEWS & set(names):
        return {}
    plain = plain_views(recipes, size)
    full_size = largest(view.size for view in plain)
    full = [view.recipe for view in plain if view.size == full_size]
    planned = {
        "neighbor_0": PlannedView(full[0], len(recipes), full_size),
        "neighbor_1": PlannedView(full[-1], len(recipes) + 1, full_size),
    }
    # cutmix pastes a rectangle of neighbor_0.
    required = {*names, "neighbor_0"} if "cutmix" in names else {*names}
    return {name: view for name, view in planned.items() if name in required}


def _cutmix(
    views: list[Tensor], neighbor_BCHW: Tensor, batch: Batch, seed: int
) -> tuple[Tensor, float]:
    """Return BINGO's CutMix (arXiv:2107.01691), and the fraction of pixels of the image."""
    if views[0].shape != neighbor_BCHW.shape:
        raise UserError(
            f"views: the first view must have full size to be mixed with neighbors "
            f"({size_text(size_of(neighbor_BCHW))} pixels, got {size_text(size_of(views[0]))}); "
            "reorder views"
        )
    step_1 = torch.tensor([batch.step])
    *three, center_y, center_x = uniform(seed, batch.epoch, step_1, _BOX, 5)[0].tolist()
    # The median of three uniform numbers follows Beta(2, 2).
    fraction = sorted(three)[1]
    return paste(views[0], neighbor_BCHW, centered_box(1.0 - fraction, center_y, center_x))
