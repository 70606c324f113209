"""Convert ``.npy`` arrays to image files, so that all image readers can read them."""

import io
import math
import struct
from typing import IO

import numpy as np
from PIL import Image

from ssdistill.data.bad_image import BadImage
from ssdistill.data.header import too_large
from ssdistill.errors import one_line

KINDS = {"u": 1, "i": 2, "f": 3}
"""TIFF SampleFormat by numpy dtype kind."""


def image_file(data: bytes) -> bytes:
    """Return the array in a ``.npy`` file as an uncompressed PPM or TIFF with the same values.

    Args:
        data: a ``.npy`` file of (H, W) or (H, W, 1) numbers, or (H, W, 3) uint8. Booleans become
            0 and 255, floats become float32. Objects are never unpickled.

    Raises:
        BadImage: an unsupported shape or type, a size that contradicts the header, or more
            pixels than ``data.max_pixels``.
    """
    array = _array(data)
    if array.dtype.kind == "b":
        array = array.astype(np.uint8) * 255
    if array.ndim == 3:
        if array.dtype != np.uint8:
            raise BadImage(
                f"3 channels of {array.dtype} are not supported; save uint8, or a 16-bit PNG"
            )
        return b"P6 %d %d 255\n" % (array.shape[1], array.shape[0]) + array.tobytes()
    if array.dtype == np.uint8:
        return b"P5 %d %d 255\n" % (array.shape[1], array.shape[0]) + array.tobytes()
    return _tiff(array)


def _array(data: bytes) -> np.ndarray:
    shape, _, _ = array_header(io.BytesIO(data))
    gray = len(shape) == 2 or (len(shape) == 3 and shape[2] == 1)
    if not (gray or (len(shape) == 3 and shape[2] == 3)):
        raise BadImage(
            f"an array of {' x '.join(map(str, shape))}; save H x W or H x W x 3, or set "
            "data.channels"
        )
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and shape[0] * shape[1] > limit:
        raise BadImage(f"{shape[1]}x{shape[0]} is {too_large()}")
    array = array_in(data)
    return np.ascontiguousarray(array[..., 0] if gray and array.ndim == 3 else array)


def array_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Return shape, order (whether columns come first) and type of an array in a ``.npy`` file.

    Raises:
        BadImage: not a ``.npy`` file, no real numbers, or neither two nor three axes.
    """
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0
        shape, column_major, dtype = (
            read if version == (1, 0) else np.lib.format.read_array_header_2_0
        )(file)
    except Exception as error:  # numpy raises all kinds of errors on damaged headers
        raise BadImage(f"not a .npy array ({one_line(error)})") from error
    if dtype.hasobject or dtype.kind not in "buif":
        raise BadImage(f"an array of {dtype}; save real numbers")
    if min(shape, default=0) < 1 or len(shape) not in (2, 3):
        raise BadImage(f"an array of {' x '.join(map(str, shape))}; save H x W or H x W x 3")
    return shape, column_major, dtype


def array_in(data: bytes) -> np.ndarray:
    """Return the image in a ``.npy`` file as a read-only array; objects are never unpickled.

    Raises:
        BadImage: as :func:`array_header`, or a size that contradicts the header.
    """
    shape, column_major, dtype = array_header(file := io.BytesIO(data))
    if math.prod(shape) * dtype.itemsize != len(data) - file.tell():
        raise BadImage("its size does not match the header; save it again")
    order = "F" if column_major else "C"
    return np.frombuffer(data, dtype, offset=file.tell()).reshape(shape, order=order)


def _tiff(array_HW: np.ndarray) -> bytes:
    """Return (H, W) numbers of 1, 2 or 4 bytes as a TIFF of one strip."""
    letter, size = array_HW.dtype.kind, array_HW.dtype.itemsize
    if letter == "f":
        with np.errstate(over="ignore"):  # infinite pixels are reported when the image is read
            array_HW = array_HW.astype("<f4")
    elif size == 8:
        raise BadImage("64-bit integers are not supported; save at most 32 bits")
    else:
        # Pillow cannot read signed bytes.
        array_HW = array_HW.astype(f"<{letter}{max(size, 2)}")
    height, width = array_HW.shape
    content, bits = array_HW.tobytes(), array_HW.dtype.itemsize * 8
    entries = (
        (256, 4, width), (257, 4, height), (258, 3, bits), (259, 3, 1), (262, 3, 1),
        (273, 4, 8 + 2 + 10 * 12 + 4), (277, 3, 1), (278, 4, height), (279, 4, len(content)),
        (339, 3, KINDS[letter]),
    )  # fmt: skip
    # In little-endian order, two-byte values (type 3) padded to four look the same.
    directory = b"".join(
        struct.pack("<HHII", tag, type_, 1, value) for tag, type_, value in entries
    )
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + directory + bytes(4) + content
