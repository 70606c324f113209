"""Random views of a batch: one recipe, an independent draw for every image.

The parameters of a view are drawn first (:func:`view_parameters`) and then applied
(:func:`apply_parameters`), so a view can be reproduced. The operations are those of SimCLR
(arXiv:2002.05709, appendix A) and BYOL (arXiv:2006.07733, appendix B), in their order: crop, flip,
color jitter, grayscale, blur, solarize. Views are in [0, 1]; each encoder normalizes its inputs.
"""

import torch
from torch import Tensor

from ssdistill.data import channel_color, color, geometry
from ssdistill.data.batch import Crops
from ssdistill.data.recipes import ViewRecipe
from ssdistill.data.view_parameters import ViewParameters, view_parameters
from ssdistill.data.view_size import check_size, size_of
from ssdistill.errors import UserError
from ssdistill.settings import Size, height_width

_CHUNK_BYTES = 1 << 21
"""Bytes of float pixels per chunk on a CPU: small enough for its cache."""


@torch.no_grad()
def apply_parameters(images_BHWC: Tensor, params: ViewParameters, size: Size) -> Tensor:
    """Build the view that ``params`` describes.

    Args:
        images_BHWC: uint8, or float32 in [0, 1], on the device of ``params``.
        size: of the view.

    Returns:
        (B, C, h, w) float32 in [0, 1].

    Raises:
        UserError: the blur kernel does not fit the view, or the recipe's colors the channels.
    """
    height, width = height_width(size)
    batch, *source, channels = images_BHWC.shape
    _check(images_BHWC, "images (B, H, W, C)", params, channels)
    out_BCHW = torch.empty(batch, channels, height, width, device=images_BHWC.device)
    chunk = batch
    if images_BHWC.device.type == "cpu":
        chunk = max(1, _CHUNK_BYTES // (4 * channels * max(source[0] * source[1], height * width)))
    with torch.autocast(images_BHWC.device.type, enabled=False):
        for start in range(0, batch, chunk):
            rows = slice(start, start + chunk)
            _make(images_BHWC[rows], params.take(rows), out_BCHW[rows])
    return out_BCHW


@torch.no_grad()
def apply_to_crops(crops_BCHW: Tensor, params: ViewParameters) -> Tensor:
    """Build the view that ``params`` describes from images already cropped and resized.

    Args:
        crops_BCHW: crops at the boxes of ``params``, on its device: uint8, or float32 in [0, 1].

    Returns:
        (B, C, h, w) float32 in [0, 1].

    Raises:
        UserError: the blur kernel does not fit the view, or the recipe's colors the channels.
    """
    batch, channels, height, width = crops_BCHW.shape
    _check(crops_BCHW, "crops (B, C, H, W)", params, channels)
    out_BCHW = torch.empty(batch, channels, height, width, device=crops_BCHW.device)
    if crops_BCHW.dtype == torch.uint8 and not params.colored:
        _fill(crops_BCHW, params.flip_B, out_BCHW)
        return out_BCHW
    chunk = batch
    if crops_BCHW.device.type == "cpu":
        chunk = max(1, _CHUNK_BYTES // (4 * channels * height * width))
    with torch.autocast(crops_BCHW.device.type, enabled=False):
        for start in range(0, batch, chunk):
            rows = slice(start, start + chunk)
            _finish(crops_BCHW[rows], params.take(rows), out_BCHW[rows])
    return out_BCHW


def view_of_crops(crops: Crops) -> Tensor:
    """Return the view, (B, C, h, w) float32 in [0, 1], that crops of a batch are made into."""
    return crops.pixels_BCHW if crops.finished else apply_to_crops(crops.pixels_BCHW, crops.params)


def _check(pixels: Tensor, what: str, params: ViewParameters, channels: int) -> None:
    if pixels.dtype not in (torch.uint8, torch.float32) or channels < 1:
        raise TypeError(
            f"{what} must be uint8, or float32 in [0, 1], of one channel or more, got "
            f"{pixels.dtype} {tuple(pixels.shape)}"
        )
    own = None if params.factor_BC2 is None else params.factor_BC2.shape[1]
    if (params.of_colors and channels != 3) or own not in (None, channels):
        drawn = "RGB" if own is None else f"{own} channels"
        raise UserError(
            f"views: the recipe is for {drawn}, the images have {channels} channel"
            f"{'s' if channels > 1 else ''}; use recipe.for_channels({channels})"
        )


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
    x_BCHW = geometry.crop_resize_flip(
        images_BHWC.index_select(0, sorted_B), params.boxes, params.flip_B, size_of(out_BCHW)
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
    x_BCHW: Tensor,
    params: ViewParameters,
    group_B: Tensor,
    sorted_B: Tensor,
    out_BCHW: Tensor,
) -> None:
    """Apply color operations to sorted images; write them to ``out_BCHW`` in original order."""
    _jitter(x_BCHW, params, group_B)
    if len(gray_K := params.grayscale_B.nonzero()[:, 0]):
        color.grayscale_(x_BCHW, gray_K)
    if params.dropped_B is not None:
        channel_color.drop_channel_(x_BCHW.view(*x_BCHW.shape[:2], -1), params.dropped_B)
    if len(blur_K := params.blur_B.nonzero()[:, 0]):
        kernel = color.blur_kernel_size(params.blur_kernel, size_of(out_BCHW))
        color.gaussian_blur_(x_BCHW, blur_K, params.blur_sigma_B[blur_K], kernel)
    if len(invert_K := params.solarize_B.nonzero()[:, 0]):
        color.solarize_(x_BCHW, invert_K, params.solarize_threshold)
    # Interpolation weights sum to 1 only up to rounding.
    torch.index_select(x_BCHW.clamp_(0.0, 1.0), 0, sorted_B.argsort(), out=out_BCHW)


def _jitter(x_BCHW: Tensor, params: ViewParameters, group_B: Tensor) -> None:
    """Jitter the colors of sorted images, or brightness and contrast where there are none."""
    x_BCN, factor_BC2 = x_BCHW.view(*x_BCHW.shape[:2], -1), params.factor_BC2
    if factor_BC2 is None and x_BCHW.shape[1] == 3:
        color.jitter_(x_BCHW, params.order_B4, params.factor_B4, group_B)
    else:
        if factor_BC2 is None:
            factor_BC2 = params.factor_B4[:, None, :2].expand(-1, x_BCHW.shape[1], -1)
        # Those without jitter come last.
        rows = slice(0, int((group_B != color.UNTOUCHED).sum()))
        channel_color.jitter_channels_(x_BCN[rows], params.order_B4[rows], factor_BC2[rows])
    if params.noise_B is not None and params.noise_key_B is not None:
        channel_color.add_noise_(x_BCN, params.noise_B, params.noise_key_B)


def make_view(
    images_BHWC: Tensor,
    recipe: ViewRecipe,
    *,
    seed: int,
    epoch: int,
    index_B: Tensor,
    view: int,
    size: Size,
) -> Tensor:
    """Build one random view of each image, determined by (seed, epoch, index, view).

    Args:
        images_BHWC: uint8, or float32 in [0, 1].
        index_B: int64 position of each image in its store.
        view: number of the view within the step, from 0.
        size: of the view; ``size`` and ``count`` of the recipe are ignored.

    Returns:
        (B, C, h, w) float32 in [0, 1], on the device of ``images_BHWC``, detached.
    """
    check_size(size)
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
def eval_view(images_BHWC: Tensor, size: Size) -> Tensor:
    """Build the evaluation view: resize the image to cover ``size``, then center-crop.

    For a square, this resizes the shorter side to ``size``.

    Args:
        images_BHWC: uint8, or float32 in [0, 1].

    Returns:
        (B, C, h, w) float32 in [0, 1]; not resampled if the size already matches.
    """
    with torch.autocast(images_BHWC.device.type, enabled=False):
        return geometry.resize_center_crop(images_BHWC, size)
