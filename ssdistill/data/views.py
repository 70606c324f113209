"""Random views of a batch: one recipe, an independent draw for every image.

The parameters of a view are drawn first (:func:`view_parameters`) and then applied
(:func:`apply_parameters`), so a view can be reproduced. The operations are those of SimCLR
(arXiv:2002.05709, appendix A) and BYOL (arXiv:2006.07733, appendix B), in their order: crop, flip,
color jitter, grayscale, blur, solarize. Views are in [0, 1]; each encoder normalizes its inputs.
"""

from dataclasses import dataclass, fields
from itertools import accumulate

import torch
from torch import Tensor

from ssdistill.data import color, geometry
from ssdistill.data.counter_rng import uniform
from ssdistill.data.recipes import ViewRecipe
from ssdistill.errors import UserError

_CHUNK_BYTES = 1 << 21
"""Bytes of float pixels per chunk on a CPU: small enough for its cache."""

_SLOTS = {"crop": geometry.CROP_SLOTS, "flip": 1, "jitter": 1, "order": 4, "factor": 4}
_SLOTS |= {"grayscale": 1, "blur": 1, "blur_sigma": 1, "solarize": 1}


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

    @property
    def colored(self) -> bool:
        """Whether any operation but crop and flip applies to any image."""
        changed_B = self.jitter_B | self.grayscale_B | self.blur_B | self.solarize_B
        return bool(changed_B.any())

    def to(self, device: torch.device) -> "ViewParameters":
        """Return the parameters on another device."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return ViewParameters(
            **{k: v.to(device) if isinstance(v, Tensor) else v for k, v in values.items()}
        )

    def take(self, rows: Tensor | slice) -> "ViewParameters":
        """Return the parameters of the selected images."""
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
    height: int | Tensor,
    width: int | Tensor,
) -> ViewParameters:
    """Draw the parameters of a view of images of ``height`` x ``width`` pixels (int, or (B,)).

    The draw of image i depends only on (seed, epoch, index_B[i], view) and the recipe, and is
    computed on the device of ``index_B``.
    """
    # Crop sizes are rounded roots; in double precision all devices round them equally.
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
    """Build the view that ``params`` describes.

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
        raise TypeError(
            f"images must be uint8 (B, H, W, 3), got {images_BHWC.dtype} {tuple(images_BHWC.shape)}"
        )
    out_BCHW = torch.empty(batch, 3, size, size, device=images_BHWC.device)
    chunk = batch
    if images_BHWC.device.type == "cpu":
        chunk = max(1, _CHUNK_BYTES // (12 * max(height * width, size * size)))
    with torch.autocast(images_BHWC.device.type, enabled=False):
        for start in range(0, batch, chunk):
            rows = slice(start, start + chunk)
            _make(images_BHWC[rows], params.take(rows), out_BCHW[rows])
    return out_BCHW


@torch.no_grad()
def apply_to_crops(crops_BCHW: Tensor, params: ViewParameters) -> Tensor:
    """Build the view that ``params`` describes from images already cropped and resized.

    Args:
        crops_BCHW: crops at the boxes of ``params``, on its device: three channels, uint8 or
            float32 in [0, 1].

    Returns:
        (B, 3, size, size) float32 in [0, 1].

    Raises:
        UserError: the blur kernel does not fit the view.
    """
    batch, channels, height, width = crops_BCHW.shape
    if channels != 3:
        raise TypeError(f"crops must have 3 channels, got {tuple(crops_BCHW.shape)}")
    out_BCHW = torch.empty(batch, 3, height, width, device=crops_BCHW.device)
    if crops_BCHW.dtype == torch.uint8 and not params.colored:
        _fill(crops_BCHW, params.flip_B, out_BCHW)
        return out_BCHW
    chunk = batch
    if crops_BCHW.device.type == "cpu":
        chunk = max(1, _CHUNK_BYTES // (12 * height * width))
    with torch.autocast(crops_BCHW.device.type, enabled=False):
        for start in range(0, batch, chunk):
            rows = slice(start, start + chunk)
            _finish(crops_BCHW[rows], params.take(rows), out_BCHW[rows])
    return out_BCHW


def _finish(crops_BCHW: Tensor, params: ViewParameters, out_BCHW: Tensor) -> None:
    params, group_B, sorted_B = _by_jitter(params)
    x_BCHW = torch.empty_like(out_BCHW)
    _fill(crops_BCHW.index_select(0, sorted_B), params.flip_B, x_BCHW)
    _color(x_BCHW, params, group_B, sorted_B, out_BCHW)


def _fill(crops_BCHW: Tensor, flip_B: Tensor, out_BCHW: Tensor) -> None:
    """Write crops, flipped where ``flip_B`` holds, as floats in [0, 1]."""
    scale = 255.0 if crops_BCHW.dtype == torch.uint8 else 1.0
    if crops_BCHW.device.type != "cpu":
        flip_B111 = flip_B[:, None, None, None]
        torch.div(torch.where(flip_B111, crops_BCHW.flip(3), crops_BCHW), scale, out=out_BCHW)
        return
    # One image at a time stays in the cache.
    for crop_CHW, flipped, out_CHW in zip(crops_BCHW, flip_B.tolist(), out_BCHW, strict=True):
        torch.div(crop_CHW.flip(2) if flipped else crop_CHW, scale, out=out_CHW)


def _make(images_BHWC: Tensor, params: ViewParameters, out_BCHW: Tensor) -> None:
    params, group_B, sorted_B = _by_jitter(params)
    size = out_BCHW.shape[-1]
    x_BCHW = geometry.crop_resize_flip(
        images_BHWC.index_select(0, sorted_B), params.boxes, params.flip_B, size
    )
    _color(x_BCHW, params, group_B, sorted_B, out_BCHW)


def _by_jitter(params: ViewParameters) -> tuple[ViewParameters, Tensor, Tensor]:
    """Sort parameters by jitter group.

    Returns the sorted parameters, their groups, and the original position of each image.
    """
    group_B = color.jitter_groups(params.order_B4, params.jitter_B)
    group_B, sorted_B = group_B.sort(stable=True)
    return params.take(sorted_B), group_B, sorted_B


def _color(
    x_BCHW: Tensor, params: ViewParameters, group_B: Tensor, sorted_B: Tensor, out_BCHW: Tensor
) -> None:
    """Apply color operations to sorted images; write them to ``out_BCHW`` in original order."""
    size = out_BCHW.shape[-1]
    color.jitter_(x_BCHW, params.order_B4, params.factor_B4, group_B)
    if len(gray_K := params.grayscale_B.nonzero()[:, 0]):
        color.grayscale_(x_BCHW, gray_K)
    if len(blur_K := params.blur_B.nonzero()[:, 0]):
        kernel = color.blur_kernel_size(params.blur_kernel, size)
        color.gaussian_blur_(x_BCHW, blur_K, params.blur_sigma_B[blur_K], kernel)
    if len(invert_K := params.solarize_B.nonzero()[:, 0]):
        color.solarize_(x_BCHW, invert_K, params.solarize_threshold)
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
    """Build one random view of each image, determined by (seed, epoch, index, view).

    Args:
        images_BHWC: uint8, three channels.
        index_B: int64 position of each image in its store.
        view: number of the view within the step, from 0.
        size: side of the view in pixels; ``size`` and ``count`` of the recipe are ignored.

    Returns:
        (B, 3, size, size) float32 in [0, 1], on the device of ``images_BHWC``, detached.
    """
    check_side(size)
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


def check_side(size: int) -> None:
    """Raise UserError if the side of a view is below 1 pixel."""
    if size < 1:
        raise UserError(f"size={size}: a view has at least one pixel; raise it")


@torch.no_grad()
def eval_view(images_BHWC: Tensor, size: int) -> Tensor:
    """Build the evaluation view: resize the shorter side to ``size``, then center-crop.

    Args:
        images_BHWC: uint8, three channels.

    Returns:
        (B, 3, size, size) float32 in [0, 1]; not resampled if the size already matches.
    """
    with torch.autocast(images_BHWC.device.type, enabled=False):
        return geometry.resize_center_crop(images_BHWC, size)
