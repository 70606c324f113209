"""View recipes by name, and the list of views in a config."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import model_validator

from ssdistill.errors import nearest
from ssdistill.settings import Fraction, NonNegative, PositiveInt, Settings


class ViewRecipe(Settings):
    """Distribution of a random view. Defaults keep colors; names follow torchvision.

    Attributes:
        scale: smallest and largest fraction of the image's area in the crop.
        ratio: smallest and largest width / height of the crop.
        flip: probability of a left-right flip.
        jitter: probability of color jitter (its four operations in random order).
        brightness, contrast, saturation: factors are drawn from [max(0, 1 - value), 1 + value].
        hue: shifts are drawn from [-hue, hue], in turns of the color wheel; at most 0.5.
        grayscale, blur, solarize: probability of each operation.
        blur_sigma: smallest and largest standard deviation, in pixels of the view.
        blur_kernel: width in pixels, odd; None means an odd tenth of the view, at least 3.
        solarize_threshold: pixels at or above it are inverted, in [0, 1].
        size: side of the view in pixels; None means the input size of the encoder.
        count: number of such views, drawn independently.
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


_COLOR = {"jitter": 0.8, "grayscale": 0.2}
_MILD = _COLOR | {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
_FULL = _COLOR | {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2}
_BYOL = _MILD | {"scale": (0.08, 1.0), "saturation": 0.2}

RECIPES: dict[str, ViewRecipe] = {
    # For teachers and kNN banks: geometry only.
    "weak": ViewRecipe(),
    # Supervised ImageNet training, and linear evaluation in papers.
    "crop_flip": ViewRecipe(scale=(0.08, 1.0)),
    # MoCo v2, arXiv:2003.04297.
    "strong": ViewRecipe(**_MILD, blur=0.5),
    # SimCLR, arXiv:2002.05709, color strength 1.
    "simclr": ViewRecipe(**_FULL, scale=(0.08, 1.0), blur=0.5),
    # BYOL's two different views, arXiv:2006.07733, table 6.
    "byol_a": ViewRecipe(**_BYOL, blur=1.0),
    "byol_b": ViewRecipe(**_BYOL, blur=0.1, solarize=0.2),
    # Gray digits: flipped or tightly cropped, they would become other digits.
    "digits": ViewRecipe(scale=(0.5, 1.0), flip=0.0, jitter=0.8, brightness=0.4, contrast=0.4),
    # DINO's local crops, arXiv:2104.14294; use with a smaller `size`.
    "multicrop_small": ViewRecipe(**_BYOL | {"scale": (0.05, 0.4)}, blur=0.5),
    # The whole central square.
    "eval": ViewRecipe(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0),
}


def resolve_recipe(entry: Any) -> Any:
    """Resolve one entry of a config's ``views``, for pydantic to validate.

    A string is the name of a recipe. A mapping with a key ``recipe`` overrides settings of that
    recipe: ``{recipe: multicrop_small, size: 16, count: 6}``. All else is returned unchanged.

    Raises:
        ValueError: there is no recipe of that name.
    """
    if isinstance(entry, str):
        return _recipe(entry)
    if not isinstance(entry, Mapping) or "recipe" not in entry:
        return entry
    changed = {key: value for key, value in entry.items() if key != "recipe"}
    return _recipe(entry["recipe"]).model_dump() | changed


def _recipe(name: Any) -> ViewRecipe:
    if not isinstance(name, str) or name not in RECIPES:
        hint, names = nearest(name, RECIPES), ", ".join(RECIPES)
        raise ValueError(f"unknown recipe '{name}'{hint}; choose one of {names}")
    return RECIPES[name]


def expand(recipes: Iterable[ViewRecipe]) -> tuple[ViewRecipe, ...]:
    """Return one recipe per view, by repeating recipes with ``count`` views."""
    return tuple(
        recipe.model_copy(update={"count": 1}) for recipe in recipes for _ in range(recipe.count)
    )
