"""The random parameters of a view, drawn before it is made."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from ssdistill.data import geometry
from ssdistill.data.counter_rng import uniform
from ssdistill.data.recipes import ViewRecipe

_SLOTS = {"crop": geometry.CROP_SLOTS, "flip": 1, "jitter": 1, "order": 4, "factor": 4}
_SLOTS |= {"grayscale": 1, "blur": 1, "blur_sigma": 1, "solarize": 1}
_LATER_SLOTS = {"drop": 1, "dropped": 1, "noise": 1, "noise_key": 1}
"""Drawn after all others, which keep their values; the factors of each channel follow."""
NO_CHANNEL = -1


@dataclass(frozen=True)
class ViewParameters:
    """All random parameters of a view of B images; they reproduce it exactly.

    Attributes:
        top_B, left_B, height_B, width_B: int64 crop in source pixels.
        flip_B, jitter_B, grayscale_B, blur_B, solarize_B: bool, whether to apply the operation.
        order_B4: int64, order of brightness 0, contrast 1, saturation 2 and hue 3.
        factor_B4: float32 brightness, contrast and saturation factor and hue shift.
        blur_sigma_B: float32, pixels of the view.
        blur_kernel, solarize_threshold: as in :class:`ViewRecipe`.
        of_colors: whether an operation is defined for RGB only.
        factor_BC2: float32 brightness and contrast factor of each channel; None if all channels
            of an image share those in ``factor_B4``.
        dropped_B: int64 channel replaced by its mean, :data:`NO_CHANNEL` for none; None if the
            recipe drops no channels.
        noise_B: float32 standard deviation of the noise, in units of the channel's own; None if
            the recipe adds no noise. ``noise_key_B`` (int64) is the seed of each image's noise.
    """

    top_B: Tensor
    left_B: Tensor
    height_B: Tensor
    width_B: Tensor
    flip_B: Tensor
    jitter_B: Tensor
    order_B4: Tensor
    factor_B4: Tensor
    grayscale_B: Tensor
    blur_B: Tensor
    blur_sigma_B: Tensor
    solarize_B: Tensor
    blur_kernel: int | None = None
    solarize_threshold: float = 0.5
    of_colors: bool = False
    factor_BC2: Tensor | None = None
    dropped_B: Tensor | None = None
    noise_B: Tensor | None = None
    noise_key_B: Tensor | None = None

    @property
    def boxes(self) -> geometry.Boxes:
        return geometry.Boxes(self.top_B, self.left_B, self.height_B, self.width_B)

    @property
    def colored(self) -> bool:
        """Whether any operation but crop and flip applies to any image."""
        changed_B = self.jitter_B | self.grayscale_B | self.blur_B | self.solarize_B
        if self.dropped_B is not None:
            changed_B = changed_B | (self.dropped_B != NO_CHANNEL)
        return bool(changed_B.any())

    def to(self, device: torch.device) -> "ViewParameters":
        """Return the parameters on another device."""
        return self._each(lambda values: values.to(device))

    def take(self, rows: Tensor | slice) -> "ViewParameters":
        """Return the parameters of the selected images."""
        return self._each(lambda values: values[rows])

    def _each(self, change: Callable[[Tensor], Tensor]) -> "ViewParameters":
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        changed: dict[str, Any] = {k: change(v) for k, v in values.items() if isinstance(v, Tensor)}
        return replace(self, **changed)


def view_parameters(
    recipe: ViewRecipe,
    *,
    seed: int,
    epoch: int,
    index_B: Tensor,
    view: int,
    height: int | Tensor,
    width: int | Tensor,
) -> ViewParameters:
    """Draw the parameters of a view of images of ``height`` x ``width`` pixels (int, or (B,)).

    The draw of image i depends only on (seed, epoch, index_B[i], view) and the recipe, and is
    computed on the device of ``index_B``.
    """
    slots = _slots(recipe)
    # Crop sizes are rounded roots; in double precision all devices round them equally.
    number_BK = uniform(seed, epoch, index_B, view, sum(slots.values()))
    ends = dict(zip(slots, accumulate(slots.values()), strict=True))
    draw = {name: number_BK[:, end - slots[name] : end] for name, end in ends.items()}

    def chosen(name: str) -> Tensor:
        return draw[name][:, 0] < getattr(recipe, name)

    boxes = geometry.random_boxes(draw["crop"], height, width, recipe.scale, recipe.ratio)
    low, high = recipe.blur_sigma
    jitter_B = chosen("jitter")
    return ViewParameters(
        boxes.top_B,
        boxes.left_B,
        boxes.height_B,
        boxes.width_B,
        flip_B=chosen("flip"),
        jitter_B=jitter_B,
        order_B4=draw["order"].argsort(dim=1),
        factor_B4=_factors(recipe, draw["factor"]),
        grayscale_B=chosen("grayscale"),
        blur_B=chosen("blur"),
        blur_sigma_B=(low + draw["blur_sigma"][:, 0] * (high - low)).to(torch.float32),
        solarize_B=chosen("solarize"),
        blur_kernel=recipe.blur_kernel,
        solarize_threshold=recipe.solarize_threshold,
        of_colors=recipe.of_colors,
        **(_channel_parameters(recipe, draw, jitter_B) if len(slots) > len(_SLOTS) else {}),
    )


def _slots(recipe: ViewRecipe) -> dict[str, int]:
    """Return how many random numbers of each kind an image takes, in order."""
    if recipe.channels is None and not recipe.drop and not recipe.noise:
        return _SLOTS
    return _SLOTS | _LATER_SLOTS | {"channels": 2 * (recipe.channels or 0)}


def _channel_parameters(
    recipe: ViewRecipe, draw: dict[str, Tensor], jitter_B: Tensor
) -> dict[str, Tensor | None]:
    """Return the parameters of operations on single channels."""
    values: dict[str, Tensor | None] = {}
    if recipe.channels is not None:
        number_BC2 = draw["channels"].unflatten(1, (recipe.channels, 2))
        values["factor_BC2"] = _interpolate(
            *_spread(recipe.brightness, recipe.contrast), number_BC2
        )
    if recipe.drop:
        dropped_B = (draw["dropped"][:, 0] * (recipe.channels or 3)).to(torch.int64)
        values["dropped_B"] = torch.where(draw["drop"][:, 0] < recipe.drop, dropped_B, NO_CHANNEL)
    if recipe.noise:
        # Part of the jitter, like the hue shift it replaces.
        noise_B = (draw["noise"][:, 0] * recipe.noise * jitter_B).to(torch.float32)
        values["noise_B"] = noise_B
        values["noise_key_B"] = (draw["noise_key"][:, 0] * 2.0**53).to(torch.int64)
    return values


def _factors(recipe: ViewRecipe, number_B4: Tensor) -> Tensor:
    low, high = _spread(recipe.brightness, recipe.contrast, recipe.saturation)
    return _interpolate([*low, -recipe.hue], [*high, recipe.hue], number_B4)


def _spread(*spreads: float) -> tuple[list[float], list[float]]:
    """Return the smallest and the largest factor of each operation."""
    return [max(0.0, 1.0 - spread) for spread in spreads], [1.0 + spread for spread in spreads]


def _interpolate(low: list[float], high: list[float], number: Tensor) -> Tensor:
    low_K = number.new_tensor(low)
    return (low_K + number * (number.new_tensor(high) - low_K)).to(torch.float32)
