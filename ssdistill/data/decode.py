"""Decode image files of any format and crop them to squares."""

import io
import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ssdistill.data.bad_image import BadImage
from ssdistill.data.bands import check_bands
from ssdistill.data.color_profile import Profile, note_of, profile_of, to_srgb
from ssdistill.data.deep_pixels import deep_pixels, full_range, is_deep, render
from ssdistill.data.formats import open_image
from ssdistill.data.header import ORIENTATION, check_size, refuse_stack, too_large
from ssdistill.data.resizing import fitted
from ssdistill.errors import one_line

__all__ = [
    "BadImage",
    "is_deep_file",
    "open_regular",
    "pixel_limit",
    "read_image",
    "read_pixels",
    "square",
]

GIANT_PIXELS = 1 << 25
"""Images above this size are decoded one at a time, so that memory holds one of them, not one
per core."""
STRIP_ROWS = 512
"""Rows of such an image that are converted at a time."""
ANIMATIONS = ("GIF", "PNG", "WEBP", "AVIF")
UNUSUAL = " (a TIFF with an unusual number of bands or bits; set data.channels to choose bands)"
TRANSPARENT = ("RGBA", "RGBa", "LA", "La", "PA")
FILE_TYPES = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_one_giant = threading.Lock()


def read_image(path: str | Path) -> np.ndarray:
    """Read a file as (H, W, 3) uint8 RGB, upright; 16-bit values are scaled from their full range.

    Raises:
        BadImage: as :func:`read_pixels`, and 32-bit pixels.
    """
    pixels = read_pixels(path)
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype.itemsize > 2:
        raise BadImage("32-bit pixels without a known range")
    return render(pixels, full_range(pixels.dtype))


def read_pixels(
    path: str | Path | bytes,
    note: Callable[[str], None] | None = None,
    *,
    color: str = "ignore",
    frame: int | None = None,
) -> np.ndarray:
    """Read a file, or its bytes, upright: 8-bit images as RGB, deeper ones with their own values.

    Gray becomes three equal channels; anything transparent (alpha, or a transparent palette
    entry or color) is composited on white; CMYK is read with inverted inks, as Adobe writes
    JPEGs and browsers read them; an EXIF orientation is applied. The first frame of an animation
    counts. A TIFF whose pages are of one size is a stack, and
    one with a band that is neither a color nor declared as alpha is not RGB: both are refused.
    The content decides the format, not the name.

    Args:
        note: called with a short phrase if part of the image is ignored.
        color: ``srgb`` converts 8-bit images that have another color profile.
        frame: the frame of an animation, or the page of a TIFF, from 0; None for a file that is
            one image.

    Returns:
        (H, W, 3) uint8; or, of more than 8 bits a channel, what
        :func:`ssdistill.data.deep_pixels.render` takes.

    Raises:
        BadImage: not a regular file, an empty, truncated or unreadable one, no image, pixels
            that cannot be read as they are, or more than ``PIL.Image.MAX_IMAGE_PIXELS``.
    """
    size = "its"
    try:
        with _opened(path) as file, open_image(file) as image:
            size = f"{image.width}x{image.height}"
            check_size(image)
            check_bands(image)
            _choose_frame(image, frame, note)
            giant = image.width * image.height > GIANT_PIXELS
            with _one_giant if giant else nullcontext():
                image.load()
                deep = deep_pixels(image, file)
                profile = profile_of(image)
                phrase = note_of(profile, color, deep is not None)
                if note and phrase:
                    note(phrase)
                if deep is not None:
                    return _turned(deep, image)
                converting = profile and profile.mode and not profile.is_srgb and color == "srgb"
                return _rgb(_upright(image), profile if converting else None)
    except BadImage:
        raise
    except Image.DecompressionBombError as error:
        raise BadImage(too_large()) from error
    except UnidentifiedImageError as error:
        raise BadImage(_unidentified(path)) from error
    except MemoryError as error:
        raise BadImage(f"{size} pixels do not fit into memory; lower data.max_pixels") from error
    except OSError as error:
        raise BadImage(error.strerror or one_line(error)) from error
    except Exception as error:  # Pillow's format readers raise anything on damaged bytes
        raise BadImage(f"damaged ({one_line(error)})") from error


def is_deep_file(path: str | Path | bytes) -> bool:
    """Whether an image in a file, or in its bytes, has more than 8 bits a channel.

    False for what cannot be read.
    """
    try:
        with _opened(path) as file:
            return is_deep(file)
    except Exception:  # reported when the image is read
        return False


def _opened(path: str | Path | bytes) -> IO[bytes]:
    return io.BytesIO(path) if isinstance(path, bytes) else open_regular(path)


def open_regular(path: str | Path) -> IO[bytes]:
    """Open a regular file, or a link to one; never block on a pipe or device.

    Raises:
        BadImage: a pipe, a socket, a device or a folder.
        OSError: it cannot be opened.
    """
    _check_regular(os.stat(path).st_mode)
    # What has become a pipe in the meantime must not be waited for either.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    file = os.fdopen(handle, "rb")
    try:
        _check_regular(os.fstat(handle).st_mode)
    except BaseException:
        file.close()
        raise
    return file


@contextmanager
def pixel_limit(limit: int | None) -> Iterator[None]:
    """Within the context, decode images of at most ``limit`` pixels; None keeps Pillow's limit."""
    before = Image.MAX_IMAGE_PIXELS
    try:
        # Pillow reads this global at every opening.
        Image.MAX_IMAGE_PIXELS = before if limit is None else limit
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _check_regular(mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = FILE_TYPES.get(stat.S_IFMT(mode), "something else")
        raise BadImage(f"{kind}, not a regular file")


def square(image_HWC: np.ndarray, size: int) -> np.ndarray:
    """Return the central square of an image as (size, size, 3) uint8.

    Cropped to the shorter side, then resized by Pillow's antialiased bicubic filter; an image
    of the right size comes back as it is.
    """
    return fitted(image_HWC, size)


def _choose_frame(
    image: Image.Image, frame: int | None, note: Callable[[str], None] | None
) -> None:
    if frame is None:
        refuse_stack(image)
        if note and image.format in ANIMATIONS and getattr(image, "is_animated", False):
            note("are animated: only the first frame is read")
    elif frame:
        image.seek(frame)
        check_size(image)
        check_bands(image)


def _unidentified(path: str | Path | bytes) -> str:
    with _opened(path) as file:
        head = file.read(4)
    if not head:
        return "empty file"
    tiff = head in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
    more = UNUSUAL if tiff else ""
    return f"Pillow cannot read this file{more}"


def _upright(image: Image.Image) -> Image.Image:
    try:
        # Pillow would copy the pixels of an image that is upright.
        turned = image.getexif().get(ORIENTATION, 1) != 1
        return ImageOps.exif_transpose(image) if turned else image
    except Exception:  # damaged EXIF says nothing about the pixels, which have been read
        return image


def _turned(pixels: np.ndarray, image: Image.Image) -> np.ndarray:
    """Return deep pixels in the orientation given by the image's EXIF."""
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except Exception:
        return pixels
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _rgb(image: Image.Image, profile: Profile | None) -> np.ndarray:
    if image.width * image.height <= GIANT_PIXELS:
        return np.asarray(_flat(image, profile))
    image_HWC = np.empty((image.height, image.width, 3), dtype=np.uint8)
    for top in range(0, image.height, STRIP_ROWS):
        bottom = min(top + STRIP_ROWS, image.height)
        image_HWC[top:bottom] = np.asarray(
            _flat(image.crop((0, top, image.width, bottom)), profile)
        )
    return image_HWC


def _flat(image: Image.Image, profile: Profile | None = None) -> Image.Image:
    """Convert to RGB, with anything transparent on white; to sRGB where there is a profile."""
    if profile is not None:
        image = to_srgb(image, profile)
    if image.mode in TRANSPARENT or "transparency" in image.info:
        canvas = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(canvas, image.convert("RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB")
