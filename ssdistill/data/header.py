"""What an encoded image says of itself before it is decoded: size, wholeness, depth."""

from typing import IO

from PIL import Image

from ssdistill.data.bad_image import BadImage
from ssdistill.data.bands import check_bands, is_stack
from ssdistill.data.deep_pixels import is_deep
from ssdistill.data.formats import open_image

JPEG_START, JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
ENDS = {"JPEG": JPEG_END, "PNG": b"IEND", "GIF": b"\x3b"}
"""Bytes near the end of a whole file, by format."""
TURNED = (5, 6, 7, 8)
"""EXIF orientations that exchange height and width."""
ORIENTATION = 0x0112
WIDTH, HEIGHT = 256, 257
"""TIFF tags."""
_FRAMES = frozenset(
    (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0))
)
"""JPEG markers of a frame header, which holds the number of its components."""
_BARE = frozenset((0x01, *range(0xD0, 0xD9)))
"""JPEG markers without a length."""


class Header:
    """Size of an image as it is shown, and whether it should be decoded to be believed.

    Attributes:
        height, width: pixels, upright.
        deep: more than 8 bits a channel.
        doubtful: it does not end as its format does: cut off, or with something appended.
    """

    def __init__(self, file: IO[bytes], tail: bytes, frame: int | None = None):
        """Read the header of an open image file.

        Args:
            tail: the last bytes of the file.
            frame: of an animation or a stack; None for a file that is one image.

        Raises:
            BadImage: too large, a stack of pages, or bands that cannot be read as they are.
            Exception: whatever Pillow raises for what is no image.
        """
        with open_image(file) as image:
            check_size(image)
            check_bands(image)
            if frame is None:
                refuse_stack(image)
            elif frame and image.format == "TIFF":  # in an animation, all are of one size
                image.seek(frame)
                check_size(image)
                check_bands(image)
            self.height, self.width = _encoded_size(image)
            if _orientation(image) in TURNED:
                self.height, self.width = self.width, self.height
            end = ENDS.get(image.format or "")
        self.doubtful = end is not None and end not in tail
        file.seek(0)
        self.deep = is_deep(file, frame or 0)


def check_size(image: Image.Image) -> None:
    """Raise BadImage for more pixels than ``data.max_pixels``, see ``pixel_limit``."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise BadImage(f"{image.width}x{image.height} is {too_large()}")


def refuse_stack(image: Image.Image) -> None:
    """Raise BadImage for a TIFF of several pages of one size."""
    if is_stack(image):
        pages = getattr(image, "n_frames", 1)
        raise BadImage(
            f"a stack of {pages} pages; set data.frames=all to read each as an image, or "
            "data.channels to read them as channels"
        )


def _encoded_size(image: Image.Image) -> tuple[int, int]:
    """Return height and width before any turn; Pillow gives those of a TIFF after it."""
    tags = getattr(image, "tag_v2", {})
    return tags.get(HEIGHT, image.height), tags.get(WIDTH, image.width)


def too_large() -> str:
    """Return what is wrong with an image of more pixels than allowed, and the remedy."""
    return f"more than {Image.MAX_IMAGE_PIXELS} pixels; raise data.max_pixels to read it"


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ORIENTATION, 1)
    except Exception:  # damaged EXIF says nothing about the pixels
        return 1


def jpeg_components(data: bytes) -> int:
    """Return the number of components of a JPEG: 1 gray, 3 color, 4 CMYK; 0 where none is found."""
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
