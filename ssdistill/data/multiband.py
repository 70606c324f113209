"""Read all bands of TIFF and DICOM files, in their original data type."""

import io
import math
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from ssdistill.data.bad_image import BadImage
from ssdistill.data.band_limits import MOST_BANDS, check_sizes, decoding
from ssdistill.data.bands import MASK, REDUCED
from ssdistill.data.decode import open_regular
from ssdistill.data.dicom import dicom_sizes, read_dicom
from ssdistill.data.handles import require
from ssdistill.data.header import ORIENTATION, TRANSPOSED, upright
from ssdistill.errors import UserError, one_line
from ssdistill.machine import memory_bytes

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
DICOM, PREAMBLE = b"DICM", 128
DEFLATE = (8, 32946)
COMPRESSIONS = {1: "none", 8: "deflate", 32946: "deflate", 32773: "PackBits"}
WITH_IMAGECODECS = {5: "LZW", 7: "JPEG", 50000: "zstd"}
"""TIFF codes of supported compressions; the second set requires imagecodecs."""
MINISWHITE, PALETTE = 0, 3
EXPANSION = 1100
"""An upper bound on the expansion factor of the codecs; that of deflate is about 1032."""
SAFE_BYTES = 1 << 30
"""Decompressed size of a strip or tile below which it is not checked beforehand."""


def read_bands(file: str | Path | bytes) -> np.ndarray:
    """Read all bands of a TIFF or a DICOM file.

    The bands of a TIFF are its samples per pixel, and those of further pages of equal size.
    Thumbnails (smaller copies of the first page) and masks are skipped; values are inverted if 0
    is white; palette colors become RGB, and the orientation is applied. For DICOM, see
    :func:`ssdistill.data.dicom.read_dicom`.

    Args:
        file: the path or the content of the file.

    Returns:
        (H, W, C) in the data type of the file: integers, booleans or floats.

    Raises:
        BadImage: the file is neither TIFF nor DICOM or is damaged, has NaN, infinite or complex
            values, pages of different sizes or types, an incomplete palette, an unsupported
            compression, or too many pixels or bands.
        UserError: the required library is not installed (``ssdistill[tiff]`` or
            ``ssdistill[dicom]``).
    """
    try:
        content = file if isinstance(file, bytes) else _content(file)
        if content[:4] in TIFF:
            bands_HWC = _read_tiff(io.BytesIO(content))
        elif is_multiband(content):
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


def is_multiband(head: bytes) -> bool:
    """Whether a file is TIFF or DICOM, by its first 132 bytes."""
    return head[:4] in TIFF or head[PREAMBLE : PREAMBLE + len(DICOM)] == DICOM


def multiband_sizes(file: IO[bytes]) -> tuple[int, int]:
    """Return height and width of a TIFF or DICOM file, upright, without reading its pixels.

    Raises:
        BadImage, UserError: as :func:`read_bands`.
        Exception: whatever a library raises on damaged bytes.
    """
    # For a file with a name, the libraries would open files next to it, too.
    nameless = io.BufferedReader(_Nameless(file))
    if nameless.peek(4)[:4] not in TIFF:
        return dicom_sizes(nameless)
    with _opened_tiff(nameless) as tiff:
        pages = _full_pages(tiff)
        height, width = _checked(pages)
        return (width, height) if _orientation(pages[0]) in TRANSPOSED else (height, width)


class _Nameless(io.RawIOBase):
    """An open file without its name; closing it leaves the file open."""

    def __init__(self, file: IO[bytes]):
        self._file = file

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


def _content(path: str | Path) -> bytes:
    """Read a file into memory; from a path, the libraries would open files next to it, too."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > memory_bytes() // 4:
            raise BadImage(f"the file has {size / 1e9:.1f} GB and does not fit into memory")
        return file.read()


def _opened_tiff(file: IO[bytes]) -> Any:
    require("tifffile", "tiff", "reading TIFF images with several bands")
    import tifffile

    # Ignore OME metadata, which can refer to other files.
    return tifffile.TiffFile(file, is_ome=False)


def _read_tiff(file: IO[bytes]) -> np.ndarray:
    with _opened_tiff(file) as tiff:
        pages = _full_pages(tiff)
        _checked(pages)
        with decoding(sum(page.nbytes for page in pages)):
            planes = [_bands_last(page.asarray(maxworkers=1), page) for page in pages]
            bands_HWC = planes[0] if len(planes) == 1 else np.concatenate(planes, axis=2)
        return upright(bands_HWC, _orientation(pages[0]))


def _checked(pages: Sequence[Any]) -> tuple[int, int]:
    """Return height and width of the pages; BadImage if they cannot be read as bands."""
    first = pages[0]
    dtype, shape = first.dtype, first.shape
    if dtype is None or dtype.kind not in "buif":
        raise BadImage(f"unsupported pixel type {dtype or 'unknown'}; save real numbers")
    per_page = math.prod(shape) // max(1, first.imagelength * first.imagewidth)
    if per_page * first.imagelength * first.imagewidth != math.prod(shape):
        raise BadImage(f"a volume ({' x '.join(map(str, shape))}); save its planes as pages")
    colors = 3 if int(first.photometric) == PALETTE else 1
    check_sizes(first.imagelength, first.imagewidth, colors * per_page * len(pages), dtype.itemsize)
    for page in pages:
        if (page.shape, page.dtype) != (shape, dtype):
            raise BadImage("pages differ in size or type; save each as a separate file")
        _check_segments(page)
    return first.imagelength, first.imagewidth


def _orientation(page: Any) -> int:
    tag = page.tags.get(ORIENTATION)
    return int(tag.value) if tag is not None else 1


def _full_pages(tiff: Any) -> list[Any]:
    """Return all pages but thumbnails and masks; BadImage if there are too many or none."""
    pages = []
    for number, page in enumerate(tiff.pages):
        if number >= MOST_BANDS:
            raise BadImage(f"more than {MOST_BANDS} pages; save fewer bands per file")
        # Read the tags of every page: tifffile may assume that they equal those of the first.
        page = page.aspage()
        first = pages[0] if pages else page
        smaller = page.imagelength < first.imagelength and page.imagewidth < first.imagewidth
        if not (number and (page.subfiletype & (REDUCED | MASK) or smaller)):
            pages.append(page)
    if not pages:
        raise BadImage("a TIFF without pages")
    return pages


def _bands_last(pixels: np.ndarray, page: Any) -> np.ndarray:
    """Return a page as (H, W, C), where larger values are brighter."""
    height, width = page.imagelength, page.imagewidth
    if int(page.photometric) == PALETTE:
        if page.colormap is None or pixels.max() >= page.colormap.shape[1]:
            raise BadImage("an incomplete palette; save it as RGB")
        return (
            (page.colormap[:, pixels.reshape(height, width)] >> 8).astype("u1").transpose(1, 2, 0)
        )
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
    ends = [at + count for at, count in zip(page.dataoffsets, counts, strict=False)]
    if max(ends, default=0) > page.parent.filehandle.size:
        raise BadImage("truncated: its strips or tiles reach beyond the end of the file")
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
