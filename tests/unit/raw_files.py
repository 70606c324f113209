"""Image files that Pillow cannot write: TIFFs of any bands and pages, PNGs of 16-bit color."""

import struct
import zlib

import numpy as np

PNG_COLOR = {1: 0, 2: 4, 3: 2, 4: 6}


def tiff(*pages: np.ndarray, photometric: int = 1, extra: tuple[int, ...] = ()) -> bytes:
    """An uncompressed little-endian TIFF; each page (H, W) or (H, W, C) of any number type."""
    content, previous = b"II*\0\0\0\0\0", 4
    for page in pages:
        page_HWC = page[..., None] if page.ndim == 2 else page
        height, width, bands = page_HWC.shape
        pixels = np.ascontiguousarray(page_HWC, page.dtype.newbyteorder("<")).tobytes()
        bits, kind = 8 * page.dtype.itemsize, {"u": 1, "i": 2, "f": 3}[page.dtype.kind]
        start = len(content)
        content += pixels + b"\0" * (len(pixels) % 2)
        tags = {
            256: (4, [width]),
            257: (4, [height]),
            258: (3, [bits] * bands),
            259: (3, [1]),
            262: (3, [photometric]),
            273: (4, [start]),
            277: (3, [bands]),
            278: (4, [height]),
            279: (4, [len(pixels)]),
            339: (3, [kind] * bands),
        }
        if extra:
            tags[338] = (3, list(extra))
        entries = b""
        for tag, (code, values) in sorted(tags.items()):
            packed = struct.pack(f"<{len(values)}{'I' if code == 4 else 'H'}", *values)
            if len(packed) > 4:
                where = struct.pack("<I", len(content))
                content += packed + b"\0" * (len(packed) % 2)
                packed = where
            entries += struct.pack("<HHI", tag, code, len(values)) + packed.ljust(4, b"\0")
        here = struct.pack("<I", len(content))
        content = content[:previous] + here + content[previous + 4 :]
        content += struct.pack("<H", len(tags)) + entries
        previous = len(content)
        content += b"\0\0\0\0"
    return content


def png16(pixels_HWC: np.ndarray) -> bytes:
    """A PNG of 16 bits a channel: gray, gray and alpha, RGB, or RGB and alpha."""
    height, width, bands = pixels_HWC.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels_HWC)
    header = struct.pack(">IIBBBBB", width, height, 16, PNG_COLOR[bands], 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
