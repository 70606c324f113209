"""Read all bands of an image file, of any number and data type."""

import io
import math
import os
import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, UnidentifiedImageError

from ssdistill.data.array_member import array_header, array_in
from ssdistill.data.bad_image import BadImage
from ssdistill.data.band_limits import check_sizes
from ssdistill.data.decode import ANIMATIONS, GIANT_PIXELS, open_regular
from ssdistill.data.deep_pixels import deep_pixels
from ssdistill.data.formats import open_image
from ssdistill.data.header import (
    ENDS,
    TRANSPOSED,
    check_size,
    orientation_of,
    too_large,
    upright,
)
from ssdistill.data.multiband import is_multiband, multiband_sizes, read_bands
from ssdistill.errors import UserError, one_line

NPY = b"\x93NUMPY"
HEAD = 132
"""First bytes of a file, which determine its reader."""
CONVERTED = {"P": "RGB", "PA": "RGBA", "1": "L", "RGBX": "RGB", "RGBa": "RGBA", "La": "LA"}
"""Modes whose bands are not plain values, and the modes they are converted to."""
_one_giant = threading.Lock()


def read_channels(
    file: str | Path | bytes, note: Callable[[str], None] | None = None
) -> np.ndarray:
    """Read all bands of an image, upright, in the data type of the file.

    Gray has one band, color three, CMYK four; alpha is a band like any other, and palette colors
    become RGB. For TIFF and DICOM, see :func:`ssdistill.data.multiband.read_bands`. An array in a
    ``.npy`` file is (H, W), (H, W, C) or (C, H, W), with the channels on its smallest axis.

    Args:
        file: the path or the content of the file.
        note: called with a short phrase if part of the image is ignored.

    Returns:
        (H, W, C).

    Raises:
        BadImage: see :func:`ssdistill.data.decode.read_pixels` and
            :func:`ssdistill.data.multiband.read_bands`.
        UserError: the required library is not installed.
    """
    try:
        head = _head(file)
        if not head:
            raise BadImage("empty file")
        if is_multiband(head):
            return _native(read_bands(file))
        if head.startswith(NPY):
            return _bands_of_array(file if isinstance(file, bytes) else _content(file))
        return _bands_of_image(file, note)
    except (BadImage, UserError):
        raise
    except Image.DecompressionBombError as error:
        raise BadImage(too_large()) from error
    except UnidentifiedImageError as error:
        raise BadImage("Pillow cannot read this file") from error
    except MemoryError as error:
        raise BadImage("its pixels do not fit into memory; lower data.max_pixels") from error
    except OSError as error:
        raise BadImage(error.strerror or one_line(error)) from error
    except Exception as error:  # Pillow raises all kinds of errors on damaged bytes
        raise BadImage(f"damaged ({one_line(error)})") from error


def _head(file: str | Path | bytes) -> bytes:
    if isinstance(file, bytes):
        return file[:HEAD]
    with open_regular(file) as opened:
        return opened.read(HEAD)


def _content(path: str | Path) -> bytes:
    with open_regular(path) as file:
        return file.read()


def _bands_of_image(file: str | Path | bytes, note: Callable[[str], None] | None) -> np.ndarray:
    opened = io.BytesIO(file) if isinstance(file, bytes) else open_regular(file)
    with opened, open_image(opened) as image:
        check_size(image)
        if note and image.format in ANIMATIONS and getattr(image, "is_animated", False):
            note("animated: only the first frame is read")
        giant = image.width * image.height > GIANT_PIXELS
        with _one_giant if giant else nullcontext():
            image.load()
            bands = deep_pixels(image, opened)
            if bands is None:
                mode = CONVERTED.get(image.mode)
                bands = np.asarray(image.convert(mode) if mode else image)
        bands = upright(bands, orientation_of(image))
    return _native(bands if bands.ndim == 3 else bands[..., None])


def _bands_of_array(content: bytes) -> np.ndarray:
    _check_array(io.BytesIO(content))
    array = array_in(content)
    if array.ndim == 2:
        array = array[..., None]
    elif _channels_first(array.shape):
        array = array.transpose(1, 2, 0)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise BadImage("NaN or infinite pixels")
    return _native(array)


def _check_array(file: IO[bytes]) -> tuple[int, int]:
    """Return height and width of an array in a file; BadImage if too large or ambiguous."""
    shape, _, dtype = array_header(file)
    if len(shape) == 2:
        shape = (*shape, 1)
    elif _channels_first(shape):
        shape = (*shape[1:], shape[0])
    elif shape[2] >= min(shape[:2]):
        raise BadImage(
            f"an array of {' x '.join(map(str, shape))}, in which no axis is clearly that of the "
            "channels; save H x W x C with more pixels per side than channels"
        )
    check_sizes(shape[0], shape[1], shape[2], dtype.itemsize)
    start = file.tell()
    if math.prod(shape) * dtype.itemsize != file.seek(0, os.SEEK_END) - start:
        raise BadImage("its size does not match the header; save it again")
    return shape[0], shape[1]


def _channels_first(shape: tuple[int, ...]) -> bool:
    return shape[0] < min(shape[1:])


def _native(bands_HWC: np.ndarray) -> np.ndarray:
    """Return values in the byte order of this machine."""
    return bands_HWC.astype(bands_HWC.dtype.newbyteorder("="), copy=False)


class ChannelHeader:
    """Size of an image for :func:`read_channels`, and whether its file looks truncated.

    Attributes:
        height, width: pixels, after EXIF orientation.
        deep: always False: the first image decides whether all have more than 8 bits.
        suspicious: as :attr:`ssdistill.data.header.Header.suspicious`.
    """

    deep = False

    def __init__(self, file: IO[bytes], tail: bytes):
        """Read the header of an open image file.

        Args:
            tail: the last bytes of the file.

        Raises:
            BadImage: too many pixels, or an unsupported form.
            UserError: the required library is not installed.
            Exception: whatever a library raises if the file is not an image.
        """
        self.suspicious = False
        head = file.read(HEAD)
        file.seek(0)
        if is_multiband(head):
            self.height, self.width = multiband_sizes(file)
        elif head.startswith(NPY):
            self.height, self.width = _check_array(file)
        else:
            with open_image(file) as image:
                check_size(image)
                self.height, self.width = image.height, image.width
                if orientation_of(image) in TRANSPOSED:
                    self.height, self.width = image.width, image.height
                end = ENDS.get(image.format or "")
            self.suspicious = end is not None and end not in tail
