"""JSON-ready settings that determine the result of a training stage; its hash covers them."""

from typing import Any

from ssdistill.chain.extending import extension
from ssdistill.chain.view_recipes import resolve_recipes
from ssdistill.chain.workspace import Workspace
from ssdistill.data.recipes import ViewRecipe, expand
from ssdistill.data.view_size import fits_into
from ssdistill.distill.pairing import resolve_pairs
from ssdistill.errors import UserError
from ssdistill.experiment.sections import DistillSettings, Method
from ssdistill.models.backbones import EncoderSettings
from ssdistill.settings.registry import LOSSES, METHODS
from ssdistill.teachers.starting_weights import weights_identity


def encoder_config(workspace: Workspace, settings: EncoderSettings) -> dict[str, Any]:
    """A network at its initial weights."""
    spec = workspace.spec(settings).model_dump(mode="json")
    config = spec | {"pretrained": settings.pretrained}
    if settings.weights:
        config["weights"] = {"path": settings.weights, **weights_identity(settings.weights)}
    return config


def pretraining_config(
    workspace: Workspace, encoder: EncoderSettings, settings: Method, key: str
) -> dict[str, Any]:
    """A network trained by a self-supervised method.

    Raises:
        UserError: views that the method cannot take; ``key`` says where its settings stand.
    """
    method, size = METHODS[settings.kind], workspace.image_size
    recipes = _recipes(workspace, settings.views, method.recipes)
    count, fewest = len(method.recipes), method.fewest_views(settings)
    if len(recipes) < fewest or (len(recipes) > count and not method.multicrop):
        more = " or more" if method.multicrop else ""
        raise UserError(
            f"{key}.views: {settings.kind} takes {fewest}{more} views, got {len(recipes)}; "
            "change the list"
        )
    sizes = [recipe.size or size for recipe in recipes]
    if len(set(sizes[:count])) > 1 or not all(fits_into(other, sizes[0]) for other in sizes):
        raise UserError(
            f"{key}.views: the first {count} of {settings.kind} are of full size; reorder views"
        )
    return {
        "encoder": encoder_config(workspace, encoder),
        "method": settings.model_dump(mode="json", exclude={"views", "extend"}),
        **_views_and_arithmetic(workspace, recipes),
        **extension(settings, key),
    }


def distillation_config(workspace: Workspace, distill: DistillSettings, key: str) -> dict[str, Any]:
    """How a student learns, without its network.

    Raises:
        UserError: views that the losses cannot pair; ``key`` says where their settings stand.
    """
    num_views = max(LOSSES[loss.kind].views for loss in distill.losses.values())
    recipes = _recipes(workspace, distill.views, ("strong",) * num_views)
    if len(recipes) < num_views:
        raise UserError(
            f"{key}.views: the losses take {num_views} views, got {len(recipes)}; change the list"
        )
    sizes = [recipe.size or workspace.image_size for recipe in recipes]
    for name, loss in distill.losses.items():
        try:
            resolve_pairs(loss.pairs or LOSSES[loss.kind].pairing, sizes)
        except UserError as error:
            raise UserError(f"{key}.losses.{name}.{error}") from None
    return {
        "training": distill.model_dump(mode="json", exclude={"views", "extend"}),
        **_views_and_arithmetic(workspace, recipes),
        **extension(distill, key),
    }


def _recipes(
    workspace: Workspace, requested: tuple[ViewRecipe, ...] | None, natural: tuple[str, ...]
) -> tuple[ViewRecipe, ...]:
    return expand(resolve_recipes(requested, natural, workspace.source, workspace.train))


def _views_and_arithmetic(workspace: Workspace, recipes: tuple[ViewRecipe, ...]) -> dict[str, Any]:
    device = workspace.experiment.device
    return {
        "views": [recipe.model_dump(mode="json") for recipe in recipes],
        "device": {"precision": device.precision, "memory_format": device.memory_format},
    }
