"""TIFF and DICOM with all their bands, in their own type."""

import io
import math
import os
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np

from ssdistill.data.bad_image import BadImage
from ssdistill.data.band_limits import MOST_BANDS, check_sizes
from ssdistill.data.decode import open_regular
from ssdistill.data.dicom import read_dicom
from ssdistill.data.handles import require
from ssdistill.errors import UserError, one_line
from ssdistill.machine import memory_bytes

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
DICOM, PREAMBLE = b"DICM", 128
DEFLATE = (8, 32946)
COMPRESSIONS = {1: "none", 8: "deflate", 32946: "deflate", 32773: "PackBits"}
WITH_IMAGECODECS = {5: "LZW", 7: "JPEG", 50000: "zstd"}
"""TIFF's numbers of the compressions that are read, without and with imagecodecs."""
MINISWHITE, PALETTE = 0, 3
REDUCED = 1
EXPANSION = 1100
"""No byte of deflate becomes more than about 1032."""
SAFE_BYTES = 1 << 30
"""What a compressed part of a TIFF may become without being counted first."""


def read_bands(file: str | Path | bytes) -> np.ndarray:
    """Read all bands of a TIFF or a DICOM file.

    The samples of a TIFF's pixel are its bands, and so are pages of one size; smaller copies of the
    first page are skipped, and values of which 0 is white are inverted. Neither a palette nor EXIF
    is applied. Of DICOM see :func:`ssdistill.data.dicom.read_dicom`.

    Args:
        file: a path, or the content.

    Returns:
        (H, W, C) of the file's own type: integers, booleans or floats.

    Raises:
        BadImage: neither of the two, damaged, values that are not finite, no real numbers, pages
            of several sizes or types, a compression that is not read, or more pixels or bands
            than allowed.
        UserError: the library that reads it is not installed (``ssdistill[tiff]`` or
            ``ssdistill[dicom]``).
    """
    try:
        content = file if isinstance(file, bytes) else _content(file)
        if content[:4] in TIFF:
            bands_HWC = _read_tiff(io.BytesIO(content))
        elif content[PREAMBLE : PREAMBLE + len(DICOM)] == DICOM:
            bands_HWC = read_dicom(io.BytesIO(content))
        else:
            raise BadImage("neither TIFF nor DICOM" if content else "empty file")
    except (BadImage, UserError):
        raise
    except MemoryError as error:
        raise BadImage("does not fit into memory") from error
    except OSError as error:
        raise BadImage(error.strerror or one_line(error)) from error
    except Exception as error:  # both libraries raise anything on damaged bytes
        raise BadImage(f"damaged ({one_line(error)})") from error
    if bands_HWC.dtype.kind == "f" and not np.isfinite(bands_HWC).all():
        raise BadImage("NaN or infinite pixels")
    return bands_HWC


def _content(path: str | Path) -> bytes:
    """Read a file; the libraries would look for others beside one that has a name."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > memory_bytes() // 4:
            raise BadImage(f"a file of {size / 1e9:.1f} GB, which does not fit into memory")
        return file.read()


def _read_tiff(file: IO[bytes]) -> np.ndarray:
    require("tifffile", "tiff", "a TIFF of several bands")
    import tifffile

    # Pages are read as they are: OME's metadata can name other files.
    with tifffile.TiffFile(file, is_ome=False) as tiff:
        pages = _full_pages(tiff)
        first = pages[0]
        dtype, shape = first.dtype, first.shape
        if dtype is None or dtype.kind not in "buif":
            raise BadImage(f"{dtype or 'unknown'} pixels; save real numbers")
        if int(first.photometric) == PALETTE:
            raise BadImage("colors of a palette; save it as RGB")
        per_page = math.prod(shape) // max(1, first.imagelength * first.imagewidth)
        if per_page * first.imagelength * first.imagewidth != math.prod(shape):
            raise BadImage(f"a volume of {' x '.join(map(str, shape))}; save its planes as pages")
        bands = per_page * len(pages)
        check_sizes(first.imagelength, first.imagewidth, bands, dtype.itemsize)
        planes = []
        for page in pages:
            if (page.shape, page.dtype) != (shape, dtype):
                raise BadImage("pages of several sizes or types; save each as a separate file")
            _check_segments(page)
            planes.append(_bands_last(page.asarray(maxworkers=1), page))
        return planes[0] if len(planes) == 1 else np.concatenate(planes, axis=2)


def _full_pages(tiff: Any) -> list[Any]:
    """Return the pages but smaller copies; BadImage where there are too many or none."""
    pages = []
    for number, page in enumerate(tiff.pages):
        if number >= MOST_BANDS:
            raise BadImage(f"more than {MOST_BANDS} pages")
        # Without its tags a page says nothing; tifffile skips those it believes to know.
        page = page.aspage()
        first = pages[0] if pages else page
        smaller = page.imagelength < first.imagelength and page.imagewidth < first.imagewidth
        if not (number and (page.subfiletype & REDUCED or smaller)):
            pages.append(page)
    if not pages:
        raise BadImage("a TIFF without pages")
    return pages


def _bands_last(pixels: np.ndarray, page: Any) -> np.ndarray:
    """Return a page as (H, W, C), white above black."""
    height, width = page.imagelength, page.imagewidth
    planar = pixels.ndim == 3 and page.axes.startswith("S")
    pixels = pixels.transpose(1, 2, 0) if planar else pixels.reshape(height, width, -1)
    if int(page.photometric) != MINISWHITE or page.samplesperpixel != 1:
        return pixels
    if pixels.dtype.kind == "f":
        return -pixels
    if page.bitspersample < 8 * pixels.dtype.itemsize and pixels.dtype.kind == "u":
        return ((1 << page.bitspersample) - 1 - pixels).astype(pixels.dtype)
    return ~pixels


def _check_segments(page: Any) -> None:
    """Raise BadImage for what does not hold its pixels, or unpacks to far more."""
    compression = int(page.compression)
    if compression not in COMPRESSIONS:
        name = WITH_IMAGECODECS.get(compression)
        if name is None:
            raise BadImage(f"compression {compression} is not read; save it with deflate")
        try:
            require("imagecodecs", "tiff", "")
        except UserError:
            raise BadImage(
                f"{name} compression requires imagecodecs: pip install imagecodecs"
            ) from None
    counts = page.databytecounts
    held = sum(counts) * (EXPANSION if compression != 1 else 1)
    bits = math.prod(page.shape) * page.bitspersample
    if held < bits // 8:
        raise BadImage(f"{sum(counts)} bytes cannot hold {math.prod(page.shape)} values; cut off")
    segment = page.chunks if page.is_tiled else page.shape
    if math.prod(segment) * page.dtype.itemsize > memory_bytes() // 4:
        raise BadImage("tiles that do not fit into memory")
    if compression in DEFLATE:
        size = math.prod(page.chunks) * page.dtype.itemsize
        for offset, count in zip(page.dataoffsets, counts, strict=True):
            if count * EXPANSION > max(SAFE_BYTES, 2 * size):
                _count_unpacked(page.parent.filehandle, offset, count, 2 * size + 4096)


def _count_unpacked(file: Any, offset: int, count: int, most: int) -> None:
    file.seek(offset)
    data = file.read(count)
    if len(zlib.decompressobj().decompress(data, most)) >= most:
        raise BadImage("a part that unpacks to more than its pixels")
