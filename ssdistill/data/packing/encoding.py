"""Encode images for archives: the original file, or a smaller JPEG."""

import io
import os

import numpy as np
from PIL import Image

from ssdistill.data.array_file import NPY
from ssdistill.data.array_member import image_file
from ssdistill.data.bad_image import BadImage
from ssdistill.data.cutting import decode
from ssdistill.data.decode import is_deep_file
from ssdistill.data.encoded_split import EncodedSplit
from ssdistill.data.formats import open_image
from ssdistill.data.listing import IGNORED_FOLDERS
from ssdistill.data.retry import retried
from ssdistill.data.shards.scanning import IMAGES
from ssdistill.data.splits import RawSplit

SUFFIXES = {"JPEG": ".jpg", "JPEG2000": ".jp2", "DIB": ".bmp"}
"""Suffixes that differ from Pillow's name of the format."""


def member(raw: RawSplit, row: int, *, bands: bool = False) -> tuple[str, bytes]:
    """Return the name and the content of an image, as stored in the source.

    Arrays become PNG, or ``.npy`` for more than 8 bits.

    Args:
        bands: whether images may have any number of channels; arrays then become ``.npy`` files
            with all channels.

    Raises:
        BadImage: the image cannot be read.
    """
    encoded: EncodedSplit | None = raw.encoded()
    if encoded is not None:
        name = encoded.member_name(row)
        content = retried(encoded.original, row, name, encoded.reading.seconds)
        if os.path.splitext(name)[1].lower() in IMAGES:
            return safe_name(name), content
        return safe_name(name) + _suffix(content), content
    if bands:
        np.save(file := io.BytesIO(), raw.bands(row), allow_pickle=False)
        return f"{safe_name(raw.name(row))}.npy", file.getvalue()
    pixels, file = raw.image(row), io.BytesIO()
    if pixels.dtype != np.uint8:
        np.save(file, pixels, allow_pickle=False)
        image_file(file.getvalue())  # fail now if it could not be read back
        return f"{safe_name(raw.name(row))}.npy", file.getvalue()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG")
    return f"{safe_name(raw.name(row))}.png", file.getvalue()


def _suffix(content: bytes) -> str:
    if content.startswith(NPY):
        return ".npy"
    try:
        with open_image(io.BytesIO(content)) as image:
            name = image.format or ""
    except Exception as error:  # Pillow raises all kinds of errors
        raise BadImage("not an image, by content and by name") from error
    return SUFFIXES.get(name, f".{name.lower()}")


def safe_name(name: str) -> str:
    """Return a relative name that readers of archives accept: not hidden, and without ``..``."""
    parts = (part.lstrip(".") for part in name.replace("\\", "_").split("/"))
    return "/".join(part.replace("\0", "_") for part in parts
                    if part and part not in IGNORED_FOLDERS) or "image"  # fmt: skip


def smaller(content: bytes, short_side: int, quality: int) -> bytes | None:
    """Downscale an image to a JPEG with the given shorter side, in pixels.

    Returns:
        None to keep the original: it is not larger, or has more than 8 bits per channel, which
        JPEG does not support.

    Raises:
        BadImage: the image cannot be decoded.
    """
    if content.startswith(NPY):
        content = image_file(content)
    if is_deep_file(content):
        return None
    pixels_CHW, _ = decode(content)
    height, width = pixels_CHW.shape[1:]
    if min(height, width) <= short_side:
        return None
    factor = short_side / min(height, width)
    size = (round(width * factor), round(height * factor))
    image = Image.fromarray(np.ascontiguousarray(pixels_CHW.permute(1, 2, 0).numpy()))
    file = io.BytesIO()
    image.resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=quality)
    return file.getvalue()
