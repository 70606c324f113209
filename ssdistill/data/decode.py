"""The pixels a picture file holds, whatever its format, and how they become a square."""

import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

SIXTEEN_BIT_AS_I = ("PNG", "PPM")
"""Formats whose mode ``I`` means 16 bits in 32, not 32 bits of unknown range."""


class BadImage(Exception):
    """A file that gives no picture; ``reason`` is a short phrase without the file's name."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


def read_image(path: str | Path) -> np.ndarray:
    """The picture in a file as (H, W, 3) uint8 RGB, upright.

    Grey becomes three equal channels; 16-bit grey is scaled by 255/65535 and rounded; anything
    transparent (alpha, or a transparent palette entry or colour) is composited on white; CMYK is
    read with inverted inks, as Adobe writes JPEGs and browsers read them, and without a colour
    profile; of an animation the first frame counts; an EXIF orientation is applied.

    Raises:
        BadImage: empty, truncated or unreadable file, no picture, 32-bit pixels, or more than
            ``PIL.Image.MAX_IMAGE_PIXELS`` pixels.
    """
    try:
        with Image.open(path) as image:
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and image.width * image.height > limit:
                raise BadImage(f"{image.width}x{image.height} is more than {limit} pixels")
            image.load()
            return _rgb(_upright(image), image.format)
    except BadImage:
        raise
    except Image.DecompressionBombError as error:
        raise BadImage(f"more than {Image.MAX_IMAGE_PIXELS} pixels") from error
    except UnidentifiedImageError as error:
        empty = os.path.getsize(path) == 0
        raise BadImage("empty file" if empty else "not a picture Pillow can read") from error
    except OSError as error:
        raise BadImage(error.strerror or _one_line(error)) from error
    except Exception as error:  # Pillow's format readers raise anything on damaged bytes
        raise BadImage(f"damaged ({_one_line(error)})") from error


def square(image_HWC: np.ndarray, size: int) -> np.ndarray:
    """The central square of a picture as (size, size, 3) uint8.

    Cropped to the shorter side, then resized by Pillow's antialiased bicubic filter; a picture
    of the right size comes back as it is.
    """
    if image_HWC.shape[:2] == (size, size):
        return image_HWC
    image = Image.fromarray(np.ascontiguousarray(image_HWC))
    return np.asarray(ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC))


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF says nothing about the pixels, which have been read
        return image


def _rgb(image: Image.Image, file_format: str | None) -> np.ndarray:
    if image.mode.startswith("I;16") or (image.mode == "I" and file_format in SIXTEEN_BIT_AS_I):
        grey_HW = np.asarray(image).astype(np.uint32)
        grey_HW = ((grey_HW * 255 + 32767) // 65535).astype(np.uint8)
        return np.repeat(grey_HW[..., None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise BadImage("32-bit pixels, whose black and white are not known")
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        canvas = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(canvas, image.convert("RGBA"))
    return np.asarray(image.convert("RGB"))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
