"""Read the header of an encoded image: size, bit depth, whether it looks truncated."""

from typing import IO

import numpy as np
from PIL import Image

from ssdistill.data.bad_image import BadImage
from ssdistill.data.bands import check_bands, is_stack
from ssdistill.data.deep_pixels import is_deep
from ssdistill.data.formats import open_image

JPEG_START, JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
ENDS = {"JPEG": JPEG_END, "PNG": b"IEND", "GIF": b"\x3b"}
"""Bytes near the end of a complete file, by format."""
TRANSPOSED = (5, 6, 7, 8)
"""EXIF orientations that swap height and width."""
ORIENTATION = 0x0112
WIDTH, HEIGHT = 256, 257
"""TIFF tags."""
_FRAMES = frozenset(
    (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0))
)
"""JPEG markers of a frame header, which holds the number of components."""
_BARE = frozenset((0x01, *range(0xD0, 0xD9)))
"""JPEG markers without a length field."""


class Header:
    """Size and bit depth of an image, and whether its file looks truncated.

    Attributes:
        height, width: pixels, after EXIF orientation.
        deep: more than 8 bits per channel.
        suspicious: the file lacks the end marker of its format: it is truncated, or something is
            appended to it. Only decoding can tell.
    """

    def __init__(self, file: IO[bytes], tail: bytes, frame: int | None = None):
        """Read the header of an open image file.

        Args:
            tail: the last bytes of the file.
            frame: frame of an animation or page of a stack, from 0; None if the file is one image.

        Raises:
            BadImage: too many pixels, a stack of pages, or unsupported bands.
            Exception: whatever Pillow raises if the file is not an image.
        """
        with open_image(file) as image:
            check_size(image)
            check_bands(image)
            if frame is None:
                check_not_stack(image)
            elif frame and image.format == "TIFF":  # frames of an animation have one size
                image.seek(frame)
                check_size(image)
                check_bands(image)
            self.height, self.width = _encoded_size(image)
            if orientation_of(image) in TRANSPOSED:
                self.height, self.width = self.width, self.height
            end = ENDS.get(image.format or "")
        self.suspicious = end is not None and end not in tail
        file.seek(0)
        self.deep = is_deep(file, frame or 0)


def check_size(image: Image.Image) -> None:
    """Raise BadImage if an image has more than ``data.max_pixels`` pixels (``pixel_limit``)."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise BadImage(f"{image.width}x{image.height} is {too_large()}")


def check_not_stack(image: Image.Image) -> None:
    """Raise BadImage if a TIFF has several pages of equal size."""
    if is_stack(image):
        pages = getattr(image, "n_frames", 1)
        raise BadImage(
            f"a stack of {pages} pages; set data.frames=all to read each as an image, or "
            "data.channels to read them as channels"
        )


def _encoded_size(image: Image.Image) -> tuple[int, int]:
    """Return height and width before EXIF orientation; Pillow applies it to those of a TIFF."""
    tags = getattr(image, "tag_v2", {})
    return tags.get(HEIGHT, image.height), tags.get(WIDTH, image.width)


def too_large() -> str:
    """Return the error for an image with too many pixels, and the remedy."""
    return f"more than {Image.MAX_IMAGE_PIXELS} pixels; raise data.max_pixels to read it"


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation of an image; 1, upright, if its EXIF data are damaged."""
    try:
        return image.getexif().get(ORIENTATION, 1)
    except Exception:
        return 1


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Apply an EXIF or TIFF orientation to pixels (H, W, …)."""
    if orientation in TRANSPOSED:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def jpeg_components(data: bytes) -> int:
    """Return the number of components of a JPEG: 1 gray, 3 color, 4 CMYK, 0 if unknown."""
    at = 2
    while at + 9 < len(data):
        if data[at] != 0xFF:
            return 0
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker in _FRAMES:
            return data[at + 9]
        elif marker in _BARE:
            at += 2
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return 0
