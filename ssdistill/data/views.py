"""Random views of a batch: one recipe, every image with its own draw.

A view is drawn (:func:`view_parameters`) and then made (:func:`apply_parameters`), so that it can
be made again later. The order of operations is that of SimCLR (arXiv:2002.05709, appendix A) and
BYOL (arXiv:2006.07733, appendix B): crop, flip, colour jitter, greyscale, blur, solarize.
Views are in [0, 1], not normalised: each encoder does that for itself.
"""

import math
from dataclasses import dataclass, fields
from itertools import accumulate

import torch
from pydantic import model_validator
from torch import Tensor

from ssdistill.data import colour, geometry
from ssdistill.data.counter_rng import uniform
from ssdistill.errors import UserError
from ssdistill.settings import Fraction, NonNegative, PositiveInt, Settings

_CHUNK_BYTES = 1 << 21
"""Float pixels worked on at a time on a CPU: small enough to stay in its cache."""

_SLOTS = {"crop": geometry.CROP_SLOTS, "flip": 1, "jitter": 1, "order": 4, "factor": 4}
_SLOTS |= {"grayscale": 1, "blur": 1, "blur_sigma": 1, "solarize": 1}


class ViewRecipe(Settings):
    """How a view is drawn. The defaults leave colours alone; names are torchvision's.

    Attributes:
        scale: smallest and largest share of the image's area in the crop.
        ratio: smallest and largest width / height of the crop.
        flip: probability of a left-right flip.
        jitter: probability of the colour jitter (its four operations in random order).
        brightness, contrast, saturation: a factor is drawn from [max(0, 1 - value), 1 + value].
        hue: a shift is drawn from [-hue, hue], in turns of the colour wheel; at most 0.5.
        grayscale, blur, solarize: probability of each.
        blur_sigma: smallest and largest standard deviation, in pixels of the view.
        blur_kernel: width in pixels, odd; None is an odd tenth of the view, at least 3.
        solarize_threshold: pixels at or above it are inverted, in [0, 1].
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

    @model_validator(mode="after")
    def _check(self) -> "ViewRecipe":
        for name in ("scale", "ratio", "blur_sigma"):
            low, high = getattr(self, name)
            if not 0 < low <= high < math.inf:
                raise ValueError(f"{name} must be (smallest, largest), both above 0")
        if self.scale[1] > 1:
            raise ValueError("scale must not exceed 1, the whole image")
        if self.hue > 0.5:
            raise ValueError("hue must not exceed 0.5, half a turn")
        if self.blur_kernel is not None and self.blur_kernel % 2 == 0:
            raise ValueError("blur_kernel must be odd")
        return self


_COLOUR = {"jitter": 0.8, "grayscale": 0.2}
_MILD = _COLOUR | {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
_FULL = _COLOUR | {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2}
_BYOL = _MILD | {"scale": (0.08, 1.0), "saturation": 0.2}

RECIPES: dict[str, ViewRecipe] = {
    # What a teacher or a kNN bank sees: position only.
    "weak": ViewRecipe(),
    # MoCo v2, arXiv:2003.04297.
    "strong": ViewRecipe(**_MILD, blur=0.5),
    # SimCLR, arXiv:2002.05709, colour strength 1.
    "simclr": ViewRecipe(**_FULL, scale=(0.08, 1.0), blur=0.5),
    # BYOL's two unlike views, arXiv:2006.07733, table 6.
    "byol_a": ViewRecipe(**_BYOL, blur=1.0),
    "byol_b": ViewRecipe(**_BYOL, blur=0.1, solarize=0.2),
    # Grey digits: mirrored or tightly cropped ones would be other digits.
    "digits": ViewRecipe(scale=(0.5, 1.0), flip=0.0, jitter=0.8, brightness=0.4, contrast=0.4),
    # DINO's local crops, arXiv:2104.14294; ask for them at a smaller size.
    "multicrop_small": ViewRecipe(**_BYOL | {"scale": (0.05, 0.4)}, blur=0.5),
    # The central square, whole.
    "eval": ViewRecipe(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0),
}


@dataclass(frozen=True)
class ViewParameters:
    """All that was drawn for a view of B images, enough to make it again.

    Attributes:
        top_B, left_B, height_B, width_B: int64 crop in source pixels.
        flip_B, jitter_B, grayscale_B, blur_B, solarize_B: bool, whether it is done.
        order_B4: int64, order of brightness 0, contrast 1, saturation 2 and hue 3.
        factor_B4: float32 brightness, contrast and saturation factor and hue shift.
        blur_sigma_B: float32, pixels of the view.
        blur_kernel, solarize_threshold: as in :class:`ViewRecipe`.
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

    @property
    def boxes(self) -> geometry.Boxes:
        return geometry.Boxes(self.top_B, self.left_B, self.height_B, self.width_B)

    def take(self, rows: Tensor | slice) -> "ViewParameters":
        """The parameters of some of the images."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return ViewParameters(
            **{k: v[rows] if isinstance(v, Tensor) else v for k, v in values.items()}
        )


def view_parameters(
    recipe: ViewRecipe,
    *,
    seed: int,
    epoch: int,
    index_B: Tensor,
    view: int,
    height: int,
    width: int,
) -> ViewParameters:
    """Draw a view of images of ``height`` x ``width`` pixels.

    Image i's draw depends on (seed, epoch, index_B[i], view) and the recipe alone. It is made on
    the device of ``index_B``.
    """
    # Crop sizes are rounded roots: in double precision no device rounds them differently.
    number_BK = uniform(seed, epoch, index_B, view, sum(_SLOTS.values()))
    ends = dict(zip(_SLOTS, accumulate(_SLOTS.values()), strict=True))
    draw = {name: number_BK[:, end - _SLOTS[name] : end] for name, end in ends.items()}

    def chosen(name: str) -> Tensor:
        return draw[name][:, 0] < getattr(recipe, name)

    boxes = geometry.random_boxes(draw["crop"], height, width, recipe.scale, recipe.ratio)
    low, high = recipe.blur_sigma
    return ViewParameters(
        boxes.top_B,
        boxes.left_B,
        boxes.height_B,
        boxes.width_B,
        flip_B=chosen("flip"),
        jitter_B=chosen("jitter"),
        order_B4=draw["order"].argsort(dim=1),
        factor_B4=_factors(recipe, draw["factor"]),
        grayscale_B=chosen("grayscale"),
        blur_B=chosen("blur"),
        blur_sigma_B=(low + draw["blur_sigma"][:, 0] * (high - low)).to(torch.float32),
        solarize_B=chosen("solarize"),
        blur_kernel=recipe.blur_kernel,
        solarize_threshold=recipe.solarize_threshold,
    )


def _factors(recipe: ViewRecipe, number_B4: Tensor) -> Tensor:
    spreads = (recipe.brightness, recipe.contrast, recipe.saturation)
    low = [max(0.0, 1.0 - spread) for spread in spreads] + [-recipe.hue]
    high = [1.0 + spread for spread in spreads] + [recipe.hue]
    low_4 = number_B4.new_tensor(low)
    return (low_4 + number_B4 * (number_B4.new_tensor(high) - low_4)).to(torch.float32)


@torch.no_grad()
def apply_parameters(images_BHWC: Tensor, params: ViewParameters, size: int) -> Tensor:
    """Make the view that ``params`` describes.

    Args:
        images_BHWC: uint8, three channels, on the device of ``params``.
        size: side of the view, pixels.

    Returns:
        (B, 3, size, size) float32 in [0, 1].

    Raises:
        UserError: the blur kernel does not fit the view.
    """
    _, height, width, channels = images_BHWC.shape
    batch = len(images_BHWC)
    if images_BHWC.dtype != torch.uint8 or channels != 3:
        raise TypeError(f"views need uint8 BHWC images with 3 channels, not {images_BHWC.shape}")
    out_BCHW = torch.empty(batch, 3, size, size, device=images_BHWC.device)
    chunk = batch
    if images_BHWC.device.type == "cpu":
        chunk = max(1, _CHUNK_BYTES // (12 * max(height * width, size * size)))
    with torch.autocast(images_BHWC.device.type, enabled=False):
        for start in range(0, batch, chunk):
            rows = slice(start, start + chunk)
            _make(images_BHWC[rows], params.take(rows), out_BCHW[rows])
    return out_BCHW


def _make(images_BHWC: Tensor, params: ViewParameters, out_BCHW: Tensor) -> None:
    """Fill ``out_BCHW``; the images are put in the order the colour jitter works in."""
    group_B = colour.jitter_groups(params.order_B4, params.jitter_B)
    group_B, sorted_B = group_B.sort(stable=True)
    params = params.take(sorted_B)
    size = out_BCHW.shape[-1]
    x_BCHW = geometry.crop_resize_flip(
        images_BHWC.index_select(0, sorted_B), params.boxes, params.flip_B, size
    )
    colour.jitter_(x_BCHW, params.order_B4, params.factor_B4, group_B)
    if len(grey_K := params.grayscale_B.nonzero()[:, 0]):
        colour.grayscale_(x_BCHW, grey_K)
    if len(blur_K := params.blur_B.nonzero()[:, 0]):
        kernel = colour.blur_kernel_size(params.blur_kernel, size)
        colour.gaussian_blur_(x_BCHW, blur_K, params.blur_sigma_B[blur_K], kernel)
    if len(invert_K := params.solarize_B.nonzero()[:, 0]):
        colour.solarize_(x_BCHW, invert_K, params.solarize_threshold)
    # Interpolation weights sum to 1 only up to rounding.
    torch.index_select(x_BCHW.clamp_(0.0, 1.0), 0, sorted_B.argsort(), out=out_BCHW)


def make_view(
    images_BHWC: Tensor,
    recipe: ViewRecipe,
    *,
    seed: int,
    epoch: int,
    index_B: Tensor,
    view: int,
    size: int,
) -> Tensor:
    """One random view of each image, a pure function of (seed, epoch, index, view).

    Args:
        images_BHWC: uint8, three channels.
        index_B: int64 position of each image in its store.
        view: number of the view within the step, from 0.
        size: side of the view, pixels.

    Returns:
        (B, 3, size, size) float32 in [0, 1], on the device of ``images_BHWC``, without gradient.
    """
    if size < 1:
        raise UserError(f"a view of size {size} has no pixels")
    height, width = images_BHWC.shape[1:3]
    params = view_parameters(
        recipe,
        seed=seed,
        epoch=epoch,
        index_B=index_B.to(images_BHWC.device),
        view=view,
        height=height,
        width=width,
    )
    return apply_parameters(images_BHWC, params, size)


@torch.no_grad()
def eval_view(images_BHWC: Tensor, size: int) -> Tensor:
    """The deterministic view: shorter side to ``size``, then the central square.

    Args:
        images_BHWC: uint8, three channels.

    Returns:
        (B, 3, size, size) float32 in [0, 1]; the pixels themselves when they already fit.
    """
    with torch.autocast(images_BHWC.device.type, enabled=False):
        return geometry.resize_centre_crop(images_BHWC, size)
