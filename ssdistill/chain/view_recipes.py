"""Which views a training makes of its images."""

from ssdistill.data.image_set import ImageSet
from ssdistill.data.recipes import RECIPES, ViewRecipe
from ssdistill.data.recipes_of_images import suited
from ssdistill.data.splits import Source
from ssdistill.errors import UserError

MOST_VIEWS = 100
"""Views of each image in a step."""


def resolve_recipes(
    requested: tuple[ViewRecipe, ...] | None,
    natural: tuple[str, ...],
    source: Source,
    images: ImageSet,
) -> tuple[ViewRecipe, ...]:
    """The recipes ``requested``, or else ``natural``, what the method asks for on natural images,
    unless the data has a recipe of its own; each as it suits the channels of the images.
    """
    if (count := sum(recipe.count for recipe in requested or ())) > MOST_VIEWS:
        raise UserError(f"views: {count} views of each image; use at most {MOST_VIEWS}")
    recipes = requested or tuple(RECIPES[source.default_recipe or name] for name in natural)
    return tuple(suited(recipe, images) for recipe in recipes)
