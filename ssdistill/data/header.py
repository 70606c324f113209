"""Read the header of an encoded image: size, bit depth, whether it looks truncated."""

from typing import IO

from PIL import Image

from ssdistill.data.bad_image import BadImage
from ssdistill.data.bands import check_bands, is_stack
from ssdistill.data.deep_pixels import FORMATS, is_deep

JPEG_START, JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
ENDS = {"JPEG": JPEG_END, "PNG": b"IEND", "GIF": b"\x3b"}
"""Bytes near the end of a complete file, by format."""
TRANSPOSED = (5, 6, 7, 8)
"""EXIF orientations that swap height and width."""
ORIENTATION = 0x0112
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

    def __init__(self, file: IO[bytes], tail: bytes):
        """Read the header of an open image file.

        Args:
            tail: the last bytes of the file.

        Raises:
            BadImage: too many pixels, a stack of pages, or unsupported bands.
            Exception: whatever Pillow raises if the file is not an image.
        """
        with Image.open(file, formats=FORMATS) as image:
            check_size(image)
            check_bands(image)
            check_not_stack(image)
            self.height, self.width = image.height, image.width
            if _orientation(image) in TRANSPOSED:
                self.height, self.width = image.width, image.height
            end = ENDS.get(image.format or "")
        self.suspicious = end is not None and end not in tail
        file.seek(0)
        self.deep = is_deep(file)


def check_size(image: Image.Image) -> None:
    """Raise BadImage if an image has more than ``data.max_pixels`` pixels (``pixel_limit``)."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise BadImage(f"{image.width}x{image.height} is {too_large()}")


def check_not_stack(image: Image.Image) -> None:
    """Raise BadImage if a TIFF has several pages of equal size."""
    if is_stack(image):
        pages = getattr(image, "n_frames", 1)
        raise BadImage(f"a stack of {pages} pages; save each page as a separate file")


def too_large() -> str:
    """Return the error for an image with too many pixels, and the remedy."""
    return f"more than {Image.MAX_IMAGE_PIXELS} pixels; raise data.max_pixels to read it"


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ORIENTATION, 1)
    except Exception:  # damaged EXIF data
        return 1


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
