"""Read all bands of TIFF and DICOM files, in their original data type."""

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
"""TIFF codes of supported compressions; the second set requires imagecodecs."""
MINISWHITE, PALETTE = 0, 3
REDUCED = 1
EXPANSION = 1100
"""An upper bound on the expansion factor of the codecs; that of deflate is about 1032."""
SAFE_BYTES = 1 << 30
"""Decompressed size of a strip or tile below which it is not checked beforehand."""


def read_bands(file: str | Path | bytes) -> np.ndarray:
    """Read all bands of a TIFF or a DICOM file.

    The bands of a TIFF are its samples per pixel, and those of further pages of equal size.
    Thumbnails (smaller copies of the first page) are skipped; values are inverted if 0 is white.
    EXIF orientation is not applied. For DICOM, see :func:`ssdistill.data.dicom.read_dicom`.

    Args:
        file: the path or the content of the file.

    Returns:
        (H, W, C) in the data type of the file: integers, booleans or floats.

    Raises:
        BadImage: the file is neither TIFF nor DICOM or is damaged, has NaN, infinite or complex
            values, a palette, pages of different sizes or types, an unsupported compression, or
            too many pixels or bands.
        UserError: the required library is not installed (``ssdistill[tiff]`` or
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
    except Exception as error:  # both libraries raise all kinds of errors on damaged bytes
        raise BadImage(f"damaged ({one_line(error)})") from error
    if bands_HWC.dtype.kind == "f" and not np.isfinite(bands_HWC).all():
        raise BadImage("NaN or infinite pixels")
    return bands_HWC


def _content(path: str | Path) -> bytes:
    """Read a file into memory; from a path, the libraries would open files next to it, too."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > memory_bytes() // 4:
            raise BadImage(f"the file has {size / 1e9:.1f} GB and does not fit into memory")
        return file.read()


def _read_tiff(file: IO[bytes]) -> np.ndarray:
    require("tifffile", "tiff", "reading TIFF images with several bands")
    import tifffile

    # Ignore OME metadata, which can refer to other files.
    with tifffile.TiffFile(file, is_ome=False) as tiff:
        pages = _full_pages(tiff)
        first = pages[0]
        dtype, shape = first.dtype, first.shape
        if dtype is None or dtype.kind not in "buif":
            raise BadImage(f"unsupported pixel type {dtype or 'unknown'}; save real numbers")
        if int(first.photometric) == PALETTE:
            raise BadImage("palette colors are not supported; save it as RGB")
        per_page = math.prod(shape) // max(1, first.imagelength * first.imagewidth)
        if per_page * first.imagelength * first.imagewidth != math.prod(shape):
            raise BadImage(f"a volume ({' x '.join(map(str, shape))}); save its planes as pages")
        bands = per_page * len(pages)
        check_sizes(first.imagelength, first.imagewidth, bands, dtype.itemsize)
        planes = []
        for page in pages:
            if (page.shape, page.dtype) != (shape, dtype):
                raise BadImage("pages differ in size or type; save each as a separate file")
            _check_segments(page)
            planes.append(_bands_last(page.asarray(maxworkers=1), page))
        return planes[0] if len(planes) == 1 else np.concatenate(planes, axis=2)


def _full_pages(tiff: Any) -> list[Any]:
    """Return all pages but thumbnails; BadImage if there are too many or none."""
    pages = []
    for number, page in enumerate(tiff.pages):
        if number >= MOST_BANDS:
            raise BadImage(f"more than {MOST_BANDS} pages; save fewer bands per file")
        # Read the tags of every page: tifffile may assume that they equal those of the first.
        page = page.aspage()
        first = pages[0] if pages else page
        smaller = page.imagelength < first.imagelength and page.imagewidth < first.imagewidth
        if not (number and (page.subfiletype & REDUCED or smaller)):
            pages.append(page)
    if not pages:
        raise BadImage("a TIFF without pages")
    return pages


def _bands_last(pixels: np.ndarray, page: Any) -> np.ndarray:
    """Return a page as (H, W, C), where larger values are brighter."""
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
    """Raise BadImage if the data of a page are too short, too large or cannot be decompressed."""
    compression = int(page.compression)
    if compression not in COMPRESSIONS:
        name = WITH_IMAGECODECS.get(compression)
        if name is None:
            raise BadImage(f"unsupported TIFF compression {compression}; save it with deflate")
        try:
            require("imagecodecs", "tiff", "")
        except UserError:
            raise BadImage(
                f"{name} compression requires imagecodecs: pip install imagecodecs"
            ) from None
    counts = page.databytecounts
    largest = sum(counts) * (EXPANSION if compression != 1 else 1)
    bits = math.prod(page.shape) * page.bitspersample
    if largest < bits // 8:
        raise BadImage(f"truncated: {sum(counts)} bytes for {math.prod(page.shape)} values")
    segment = page.chunks if page.is_tiled else page.shape
    if math.prod(segment) * page.dtype.itemsize > memory_bytes() // 4:
        raise BadImage("its tiles do not fit into memory; save smaller ones")
    if compression in DEFLATE:
        size = math.prod(page.chunks) * page.dtype.itemsize
        for offset, count in zip(page.dataoffsets, counts, strict=True):
            if count * EXPANSION > max(SAFE_BYTES, 2 * size):
                _check_unpacked(page.parent.filehandle, offset, count, 2 * size + 4096)


def _check_unpacked(file: Any, offset: int, count: int, limit: int) -> None:
    file.seek(offset)
    data = file.read(count)
    if len(zlib.decompressobj().decompress(data, limit)) >= limit:
        raise BadImage("a strip or tile decompresses to more bytes than its pixels have")
