"""Adapt view recipes to the channels of images."""

from typing import Any

from ssdistill.data.recipes import ViewRecipe, replaced_by


def suited(recipe: ViewRecipe, images: Any) -> ViewRecipe:
    """Return a recipe adapted to the channels of images, see :meth:`ViewRecipe.for_channels`.

    Args:
        images: an :class:`~ssdistill.data.image_set.ImageSet`, or an object with ``images``
            (N, H, W, C).
    """
    return recipe.for_channels(*channels_of(images))


def replacement_notice(images: Any) -> str | None:
    """Return which augmentations are replaced for these images, as a line for the user."""
    return replaced_by(*channels_of(images))


def channels_of(images: Any) -> tuple[int, tuple[str, ...] | None]:
    """Return the number of channels of images, and their names, if any."""
    # Do not decode images only for their shape.
    mean = getattr(images, "mean", None)
    count = images.images.shape[-1] if mean is None else len(mean)
    return count, getattr(images, "channel_names", None)
