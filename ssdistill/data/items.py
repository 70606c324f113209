"""The image and the label of an item of a map-style dataset."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from ssdistill.data.decode import flat_rgb
from ssdistill.errors import UserError, shortened

IMAGE_KEYS = ("image", "img", "pixel_values", "images", "jpg", "png", "x")
LABEL_KEYS = ("label", "labels", "target", "y", "fine_label", "cls")


def image_of(item: Any) -> Any:
    """The image of a dataset's item."""
    if isinstance(item, Mapping):
        found = next((key for key in IMAGE_KEYS if key in item), None)
        if found is None:
            keys = shortened(", ".join(map(str, item)))
            raise UserError(
                f"an item of the dataset has the keys {keys}, and none of {', '.join(IMAGE_KEYS)}; "
                "return the image under one of these"
            )
        return item[found]
    return item[0] if isinstance(item, tuple | list) and item else item


def label_of(item: Any) -> Any:
    """The label of a dataset's item; None if it has none."""
    if isinstance(item, Mapping):
        return next((item[key] for key in LABEL_KEYS if key in item), None)
    if isinstance(item, tuple | list) and len(item) > 1:
        return item[1]
    return None


def _of_pillow(image: Image.Image) -> Image.Image:
    """A gray image, an RGB one as files are decoded, or one of more than 8 bits as it is."""
    if image.mode.startswith(("I", "F")):  # Pillow would clip them
        return image
    if image.mode in ("1", "L") and "transparency" not in image.info:
        return image.convert("L")
    return flat_rgb(image)


def pixels_of(image: Any, name: str) -> np.ndarray:
    """An image as (H, W, C)."""
    if isinstance(image, Image.Image):
        image = _of_pillow(image)
    elif hasattr(image, "detach"):
        image = image.detach().cpu().numpy()
        # Tensors of images have their channels first.
        image = image.transpose(1, 2, 0) if image.ndim == 3 else image
    pixels = np.asarray(image)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.dtype.kind not in "buif" or 0 in pixels.shape:
        raise UserError(
            f"{name}: an item is no image ({type(image).__name__} of {pixels.dtype} "
            f"{pixels.shape}); return a PIL image, an array (H, W, C) or a tensor (C, H, W)"
        )
    return pixels
