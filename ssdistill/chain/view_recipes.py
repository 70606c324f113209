"""Determine the views of images in training."""

from ssdistill.data.image_set import ImageSet
from ssdistill.data.recipes import RECIPES, ViewRecipe
from ssdistill.data.recipes_of_images import suited
from ssdistill.data.splits import Source
from ssdistill.errors import UserError

MOST_VIEWS = 100
"""Maximum number of views of an image per step."""


def resolve_recipes(
    requested: tuple[ViewRecipe, ...] | None,
    natural: tuple[str, ...],
    source: Source,
    images: ImageSet,
) -> tuple[ViewRecipe, ...]:
    """Return the recipes of the views, adapted to the channels of the images.

    Args:
        requested: by the config; None uses the recipe of the source, if it has one, or else
            ``natural``.
        natural: recipes of the method for natural images.

    Raises:
        UserError: there are too many views.
    """
    if (count := sum(recipe.count for recipe in requested or ())) > MOST_VIEWS:
        raise UserError(f"views: {count} views of each image; use at most {MOST_VIEWS}")
    recipes = requested or tuple(RECIPES[source.default_recipe or name] for name in natural)
    return tuple(suited(recipe, images) for recipe in recipes)
