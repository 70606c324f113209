"""View recipes by name, and the list of views in a config."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import model_validator

from ssdistill.errors import nearest
from ssdistill.settings import Fraction, NonNegative, PositiveInt, Settings


class ViewRecipe(Settings):
    """How a view is drawn. Defaults leave colors unchanged; names are torchvision's.

    Attributes:
        scale: smallest and largest fraction of the image's area in the crop.
        ratio: smallest and largest width / height of the crop.
        flip: probability of a left-right flip.
        jitter: probability of the color jitter (its four operations in random order).
        brightness, contrast, saturation: a factor is drawn from [max(0, 1 - value), 1 + value].
        hue: a shift is drawn from [-hue, hue], in turns of the color wheel; at most 0.5.
        grayscale, blur, solarize: probability of each.
        blur_sigma: smallest and largest standard deviation, in pixels of the view.
        blur_kernel: width in pixels, odd; None is an odd tenth of the view, at least 3.
        solarize_threshold: pixels at or above it are inverted, in [0, 1].
        size: side of the view, in pixels; None is what the encoder takes.
        count: how many such views, each with its own draw.
    """

    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: Fraction = 0.5
    jitter: Fraction = 0.0
    brightness: NonNegative = 0.0
    contrast: NonNegative = 0.0
    saturation: NonNegative = 0.0
    hue: NonNegative = 0.0
    grayscale: Fraction = 0.0
    blur: Fraction = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    blur_kernel: PositiveInt | None = None
    solarize: Fraction = 0.0
    solarize_threshold: Fraction = 0.5
    size: PositiveInt | None = None
    count: PositiveInt = 1

    @model_validator(mode="after")
    def _check(self) -> "ViewRecipe":
        for name in ("scale", "ratio", "blur_sigma"):
            low, high = getattr(self, name)
            if not 0 < low <= high < math.inf:
                raise ValueError(f"{name} must be (min, max), both above 0")
        if self.scale[1] > 1:
            raise ValueError("scale must not exceed 1, the whole image")
        if self.hue > 0.5:
            raise ValueError("hue must not exceed 0.5, half a turn")
        if self.blur_kernel is not None and self.blur_kernel % 2 == 0:
            raise ValueError("blur_kernel must be odd")
        return self


_COLOR = dict[str, Any](jitter=0.8, grayscale=0.2)
_MILD = dict[str, Any](_COLOR, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
_FULL = dict[str, Any](_COLOR, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2)
_BYOL = dict[str, Any](_MILD, scale=(0.08, 1.0), saturation=0.2)
_SMALL = dict[str, Any](_BYOL, scale=(0.05, 0.4))

RECIPES: dict[str, ViewRecipe] = {
    # What a teacher or a kNN bank sees: position only.
    "weak": ViewRecipe(),
    # Supervised ImageNet training and, with it, the papers' linear evaluation.
    "crop_flip": ViewRecipe(scale=(0.08, 1.0)),
    # MoCo v2, arXiv:2003.04297.
    "strong": ViewRecipe(**_MILD, blur=0.5),
    # SimCLR, arXiv:2002.05709, color strength 1.
    "simclr": ViewRecipe(**_FULL, scale=(0.08, 1.0), blur=0.5),
    # BYOL's two unlike views, arXiv:2006.07733, table 6.
    "byol_a": ViewRecipe(**_BYOL, blur=1.0),
    "byol_b": ViewRecipe(**_BYOL, blur=0.1, solarize=0.2),
    # Gray digits: mirrored or tightly cropped ones would be other digits.
    "digits": ViewRecipe(scale=(0.5, 1.0), flip=0.0, jitter=0.8, brightness=0.4, contrast=0.4),
    # DINO's local crops, arXiv:2104.14294; use with a smaller `size`.
    "multicrop_small": ViewRecipe(**_SMALL, blur=0.5),
    # The whole central square.
    "eval": ViewRecipe(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0),
}


def resolve_recipe(entry: Any) -> Any:
    """Resolve one entry of a config's ``views``, for pydantic to validate.

    A name is the recipe of that name. A mapping with a key ``recipe`` is the recipe named there
    with the mapping's other settings in place of its own: ``{recipe: multicrop_small, size: 16,
    count: 6}``. Anything else is handed on as it is.

    Raises:
        ValueError: no recipe of that name; the nearest is named.
    """
    if isinstance(entry, str):
        return _recipe(entry)
    if not isinstance(entry, Mapping) or "recipe" not in entry:
        return entry
    changed = {key: value for key, value in entry.items() if key != "recipe"}
    return _recipe(entry["recipe"]).model_dump() | changed


def _recipe(name: Any) -> ViewRecipe:
    if not isinstance(name, str) or name not in RECIPES:
        hint, known = nearest(name, RECIPES), ", ".join(RECIPES)
        raise ValueError(f"unknown recipe '{name}'{hint}; known: {known}")
    return RECIPES[name]


def expand(recipes: Iterable[ViewRecipe]) -> tuple[ViewRecipe, ...]:
    """Return one recipe per view: a recipe of ``count`` views is repeated."""
    return tuple(
        recipe.model_copy(update={"count": 1}) for recipe in recipes for _ in range(recipe.count)
    )
