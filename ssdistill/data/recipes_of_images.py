"""View recipes as they suit the channels of given images."""

from typing import Any

from ssdistill.data.recipes import ViewRecipe, replaced_by


def suited(recipe: ViewRecipe, images: Any) -> ViewRecipe:
    """Return a recipe as :meth:`ViewRecipe.for_channels` makes it for these images.

    Args:
        images: an :class:`~ssdistill.data.image_set.ImageSet`, or what has ``images`` (N, H, W, C).
    """
    return recipe.for_channels(*channels_of(images))


def replacement_notice(images: Any) -> str | None:
    """Return what is replaced in the recipes of these images, as a line for the user."""
    return replaced_by(*channels_of(images))


def channels_of(images: Any) -> tuple[int, tuple[str, ...] | None]:
    """Return how many channels images have, and their names where they have some."""
    # Not from the shape of images that are not decoded yet.
    mean = getattr(images, "mean", None)
    count = images.images.shape[-1] if mean is None else len(mean)
    return count, getattr(images, "channel_names", None)
