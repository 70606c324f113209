"""Resize images to a common size: cropped, squashed or padded."""

from collections.abc import Callable
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from ssdistill.settings import Size, height_width

Resize = Literal["crop", "squash", "pad"]
FILTER = Image.Resampling.BICUBIC
BLACK = 0


def fitted(image_HWC: np.ndarray, size: Size, resize: Resize = "crop") -> np.ndarray:
    """Resize an image with Pillow's antialiased bicubic filter.

    An image that already has that size is returned unchanged. RGB of 8 bits is resized as a whole,
    other images channel by channel. Floats are clipped to [0, 1], which the filter can overshoot.

    Args:
        image_HWC: uint8, or float32 in [0, 1].
        size: of the result.
        resize: ``crop`` keeps the central part of that aspect ratio; ``squash`` ignores the aspect
            ratio; ``pad`` centers the whole image, with its aspect ratio, on black.

    Returns:
        (height, width, C), of the same type.
    """
    height, width = height_width(size)
    if image_HWC.shape[:2] == (height, width):
        return image_HWC
    work = {"crop": _cropped, "squash": _squashed, "pad": _padded}[resize]
    if image_HWC.dtype == np.uint8 and image_HWC.shape[2] == 3:
        return _resized(image_HWC, work, (width, height))
    planes = [_resized(image_HWC[..., k], work, (width, height)) for k in range(image_HWC.shape[2])]
    fitted_HWC = np.stack(planes, axis=2)
    return fitted_HWC.clip(0, 1) if fitted_HWC.dtype.kind == "f" else fitted_HWC


def _resized(
    pixels: np.ndarray,
    work: Callable[[Image.Image, tuple[int, int]], Image.Image],
    sides: tuple[int, int],
) -> np.ndarray:
    return np.asarray(work(Image.fromarray(np.ascontiguousarray(pixels)), sides))


def _cropped(image: Image.Image, sides: tuple[int, int]) -> Image.Image:
    return ImageOps.fit(image, sides, FILTER)


def _squashed(image: Image.Image, sides: tuple[int, int]) -> Image.Image:
    return image.resize(sides, FILTER)


def _padded(image: Image.Image, sides: tuple[int, int]) -> Image.Image:
    factor = min(sides[0] / image.width, sides[1] / image.height)
    inner = [
        min(side, max(1, round(own * factor)))
        for own, side in zip(image.size, sides, strict=True)
    ]  # fmt: skip
    canvas = Image.new(image.mode, sides, BLACK)
    corner = ((sides[0] - inner[0]) // 2, (sides[1] - inner[1]) // 2)
    canvas.paste(image.resize((inner[0], inner[1]), FILTER), corner)
    return canvas


def central(images: np.ndarray, size: Size) -> np.ndarray:
    """Return the central part of images, (..., H, W, C), like torchvision's ``CenterCrop``.

    Args:
        size: at most that of the images.

    Returns:
        a NumPy view, not a copy.
    """
    height, width = height_width(size)
    top = round((images.shape[-3] - height) / 2)
    left = round((images.shape[-2] - width) / 2)
    return images[..., top : top + height, left : left + width, :]
