"""View recipes by name, and the list of views in a config."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import SerializerFunctionWrapHandler, model_serializer, model_validator

from ssdistill.errors import nearest
from ssdistill.settings import Fraction, NonNegative, PositiveInt, Settings, Size

RGB = ("red", "green", "blue")
"""Names under which three channels are colors."""
LATER = ("drop", "noise", "channels")
"""Settings that earlier versions did not have; at their defaults they are excluded from hashes."""


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
        size: side of the view, or height and width, in pixels; None means the input size of the
            encoder.
        count: number of such views, drawn independently.
        drop: probability that a random channel is replaced by its mean.
        noise: Gaussian noise in the color jitter, after its four operations: its standard
            deviation is drawn from [0, noise], in units of the channel's own in that view.
        channels: number of channels that each have their own brightness and contrast factors, and
            their own mean for the contrast; None for the joint ones of RGB.
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
    size: Size | None = None
    count: PositiveInt = 1
    drop: Fraction = 0.0
    noise: NonNegative = 0.0
    channels: PositiveInt | None = None

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
        if self.channels is not None and (self.saturation or self.hue or self.grayscale):
            raise ValueError("channels: saturation, hue and grayscale require RGB; set them to 0")
        return self

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values, fields = handler(self), type(self).model_fields
        for name in LATER:
            if getattr(self, name) == fields[name].default:
                values.pop(name, None)
        return values

    @property
    def of_colors(self) -> bool:
        """Whether anything that it does is defined for RGB alone."""
        colors = self.jitter > 0 and (self.saturation > 0 or self.hue > 0)
        return self.channels is None and (colors or self.grayscale > 0 or self.drop > 0)

    def for_channels(self, channels: int, names: Sequence[str] | None = None) -> "ViewRecipe":
        """Return the recipe for images of so many channels.

        It is this one for three channels that are not named, or named red, green and blue.
        Of others no saturation, hue or gray value is defined. In place of graying, one channel
        of several is dropped, as often; in place of the hue, noise is added, up to as large a
        fraction of a channel's own standard deviation. Brightness and contrast are drawn for
        each channel.

        Args:
            channels: how many there are.
            names: of the channels, in order, where they have some.
        """
        if is_rgb(channels, names):
            return self
        changes: dict[str, Any] = {"saturation": 0.0, "hue": 0.0, "grayscale": 0.0}
        if channels == 1:
            changes |= {"drop": 0.0, "channels": None}
        else:
            changes |= {
                "drop": self.drop or self.grayscale,
                "noise": self.noise or self.hue,
                "channels": channels,
            }
        return self.model_copy(update=changes)


def is_rgb(channels: int, names: Sequence[str] | None = None) -> bool:
    """Return whether channels are red, green and blue: three without names, or with these."""
    return channels == 3 and (names is None or tuple(name.lower() for name in names) == RGB)


def replaced_by(channels: int, names: Sequence[str] | None = None) -> str | None:
    """Return what of recipes is replaced in images of so many channels, as a line for the user."""
    if is_rgb(channels, names):
        return None
    count = f"{channels} channel{'s' if channels > 1 else ''}"
    named = f" ({', '.join(names)})" if names and len(names) == 3 else ""
    instead = "replaced by noise and channel dropping" if channels > 1 else "ignored"
    return f"{count}{named}: saturation, hue and grayscale mean nothing there and are {instead}"


_COLOR = dict[str, Any](jitter=0.8, grayscale=0.2)
_MILD = dict[str, Any](_COLOR, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
_FULL = dict[str, Any](_COLOR, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2)
_BYOL = dict[str, Any](_MILD, scale=(0.08, 1.0), saturation=0.2)
_LEJEPA = dict[str, Any](_MILD, saturation=0.2, blur=0.5, solarize=0.2)
_SMALL = dict[str, Any](_BYOL, scale=(0.05, 0.4))

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
    # LeJEPA's views of both sizes, arXiv:2511.08544 (README of its authors).
    "lejepa": ViewRecipe(**_LEJEPA, scale=(0.3, 1.0)),
    "lejepa_small": ViewRecipe(**_LEJEPA, scale=(0.05, 0.3)),
    # Gray digits: flipped or tightly cropped, they would become other digits.
    "digits": ViewRecipe(scale=(0.5, 1.0), flip=0.0, jitter=0.8, brightness=0.4, contrast=0.4),
    # DINO's local crops, arXiv:2104.14294; use with a smaller `size`.
    "multicrop_small": ViewRecipe(**_SMALL, blur=0.5),
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
