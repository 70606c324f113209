"""Arrays as image files: every value arrives, and nothing that a header says is believed."""

import io
import pickle

import numpy as np
import pytest
from PIL import Image
from tar_files import npy

from ssdistill.data.array_member import image_file
from ssdistill.data.bad_image import BadImage
from ssdistill.data.decode import pixel_limit, read_pixels
from ssdistill.data.header import Header


@pytest.mark.parametrize(
    "dtype", ["u1", "u2", "i1", "i2", ">u2", "u4", "i4", "f2", "f4", "f8", "?"]
)
@pytest.mark.parametrize("order", ["C", "F"])
def test_values_arrive_as_they_are(dtype, order):
    rng = np.random.default_rng(0)
    low = -50 if np.dtype(dtype).kind in "if" else 0
    array = (rng.random((5, 7, 1)) * 100 + low).astype(dtype)
    if dtype == "?":
        array = rng.random((5, 7, 1)) > 0.5
    for shaped in (array, array[..., 0]):
        file = image_file(npy(np.asarray(shaped, order=order)))
        pixels = read_pixels(file)
        gray = pixels[..., 0] if pixels.ndim == 3 else pixels
        assert np.array_equal(gray, array[..., 0].astype(gray.dtype) * (255 if dtype == "?" else 1))
        header = Header(io.BytesIO(file), file[-99:])
        deep = np.dtype(dtype).itemsize > 1 or dtype == "i1"
        assert (header.height, header.width, header.deep) == (5, 7, deep)


def test_colors_arrive_as_they_are():
    array = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    assert np.array_equal(read_pixels(image_file(npy(array))), array)
    assert np.array_equal(read_pixels(image_file(npy(np.asfortranarray(array)))), array)


class Bomb:
    def __reduce__(self):
        raise AssertionError


def header(text: str) -> bytes:
    line = text.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(line).to_bytes(2, "little") + line


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (npy(np.zeros((4, 4), dtype=object)), "an array of object; save real numbers"),
        (npy(np.zeros((4, 4), dtype=complex)), "complex128; save real numbers"),
        (
            npy(np.zeros((3, 4, 4), dtype=np.uint8)),
            "3 x 4 x 4; save H x W or H x W x 3, or set data.channels",
        ),
        (npy(np.zeros((0, 4), dtype=np.uint8)), "0 x 4"),
        (npy(np.zeros(4)), "an array of 4; save H x W"),
        (npy(np.zeros((4, 4, 3), dtype=np.uint16)), "3 channels of uint16"),
        (npy(np.zeros((4, 4), dtype=np.uint64)), "64-bit integers"),
        (npy(np.zeros((4, 4)))[:-1], "does not match the header"),
        (npy(np.zeros((4, 4))) + b"x", "does not match the header"),
        (
            header("{'descr': '|u1', 'fortran_order': False, 'shape': (1000, 1000)}"),
            "does not match the header",
        ),
        (header("{'descr': '|u1', 'fortran_order': False, 'shape': (99999, 99999)}"), "more than"),
        (header("{'descr': '|u1', 'fortran_order': False, 'shape': (-4, 4)}"), "-4 x 4"),
        (header("__import__('os').abort()"), "not a .npy array"),
        (b"\x93NUMPY\x09\x00" + bytes(100), "not a .npy array"),
        (b"\x93NUMPY\x01\x00\x04\x00(((\n", "not a .npy array"),
    ],
)
def test_what_is_no_image_is_refused(data, why):
    with pixel_limit(1000_000), pytest.raises(BadImage) as error:
        image_file(data)
    assert why in error.value.reason
    assert Image.MAX_IMAGE_PIXELS != 1000_000


def test_objects_are_not_unpickled():
    array = npy(np.zeros((1, 1), dtype=object))
    bomb = array[:128] + pickle.dumps([1])
    with pytest.raises(BadImage, match="object"):
        image_file(bomb)
