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
from ssdistill.data.header import (
    ORIENTATION,
    check_not_stack,
    check_size,
    orientation_of,
    too_large,
    upright,
)
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
"""Images with more pixels are decoded one at a time, to keep only one of them in memory."""
STRIP_ROWS = 512
"""Rows of such an image to convert at a time."""
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
        BadImage: as :func:`read_pixels`; also for 32-bit pixels.
    """
    pixels = read_pixels(path)
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype.itemsize > 2:
        raise BadImage("32-bit pixels of unknown range; save 8-bit or 16-bit images")
    return render(pixels, full_range(pixels.dtype))


def read_pixels(
    path: str | Path | bytes,
    note: Callable[[str], None] | None = None,
    *,
    color: str = "ignore",
    frame: int | None = None,
) -> np.ndarray:
    """Read an upright image from a file or bytes: 8-bit as RGB, deeper ones with raw values.

    Gray is repeated over three channels. Transparency (alpha, or a transparent palette entry
    or color) is composited on white. CMYK is read with inverted inks, as Adobe writes JPEGs and
    browsers read them. EXIF orientation is applied. Unless ``frame`` is given, only the first
    frame of an animation is read, and a TIFF with several pages of equal size (a stack) is an
    error; so is a band that is neither a color nor declared as alpha. The format is detected
    from the content, not the file name.

    Args:
        note: called with a short phrase if part of the image is ignored, such as later frames.
        color: ``srgb`` converts 8-bit images that have another color profile.
        frame: the frame of an animation, or the page of a TIFF, from 0; None if the file is one
            image.

    Returns:
        (H, W, 3) uint8; for more than 8 bits per channel, an array that
        :func:`ssdistill.data.deep_pixels.render` accepts.

    Raises:
        BadImage: the file is not regular, empty, truncated or unreadable, is not an image, has
            unsupported pixels or more of them than ``PIL.Image.MAX_IMAGE_PIXELS``.
    """
    size = "the"
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
                    return upright(deep, orientation_of(image))
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
    except Exception as error:  # Pillow raises all kinds of errors on damaged bytes
        raise BadImage(f"damaged ({one_line(error)})") from error


def is_deep_file(path: str | Path | bytes) -> bool:
    """Whether an image (a file, or its bytes) has more than 8 bits per channel.

    False if it cannot be read.
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
        BadImage: the path is a pipe, a socket, a device or a folder.
        OSError: the file cannot be opened.
    """
    _check_regular(os.stat(path).st_mode)
    # Do not block either if the file has become a pipe in the meantime.
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
    """Limit the pixels of an image within the context; None keeps Pillow's limit."""
    before = Image.MAX_IMAGE_PIXELS
    try:
        # Pillow reads this global whenever it opens an image.
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

    The image is cropped to its shorter side, then resized with Pillow's antialiased bicubic
    filter. An image of that size is returned unchanged.
    """
    return fitted(image_HWC, size)


def _choose_frame(
    image: Image.Image, frame: int | None, note: Callable[[str], None] | None
) -> None:
    if frame is None:
        check_not_stack(image)
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
    hint = UNUSUAL if tiff else ""
    return f"Pillow cannot read this file{hint}"


def _upright(image: Image.Image) -> Image.Image:
    try:
        # Pillow would also copy the pixels of upright images.
        rotated = image.getexif().get(ORIENTATION, 1) != 1
        return ImageOps.exif_transpose(image) if rotated else image
    except Exception:  # damaged EXIF data; the pixels have been read
        return image


def _rgb(image: Image.Image, profile: Profile | None) -> np.ndarray:
    if image.width * image.height <= GIANT_PIXELS:
        return np.asarray(flat_rgb(image, profile))
    image_HWC = np.empty((image.height, image.width, 3), dtype=np.uint8)
    for top in range(0, image.height, STRIP_ROWS):
        bottom = min(top + STRIP_ROWS, image.height)
        image_HWC[top:bottom] = np.asarray(
            flat_rgb(image.crop((0, top, image.width, bottom)), profile)
        )
    return image_HWC


def flat_rgb(image: Image.Image, profile: Profile | None = None) -> Image.Image:
    """Convert to RGB, or from a profile to sRGB, compositing transparency on white."""
    if profile is not None:
        image = to_srgb(image, profile)
    if image.mode in TRANSPARENT or "transparency" in image.info:
        canvas = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(canvas, image.convert("RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB")
