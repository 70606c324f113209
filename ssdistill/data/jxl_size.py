"""Read the size of a JPEG XL image, which its library returns only after decoding all of it.

ISO/IEC 18181-1, D.2 (SizeHeader), and 18181-2 (boxes).
"""

from typing import IO

BARE, BOXES = b"\xff\x0a", b"\0\0\0\x0cJXL "
MOST_BOXES = 1000
RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
WIDTHS = (9, 13, 18, 30)


def jxl_size(file: IO[bytes]) -> tuple[int, int] | None:
    """Return width and height of an open JPEG XL image, as encoded; None if there are none."""
    head = file.read(len(BOXES))
    start = 0 if head.startswith(BARE) else _codestream(file) if head == BOXES else None
    if start is None:
        return None
    file.seek(start)
    content = file.read(16)
    return _size(_Bits(content[2:])) if content.startswith(BARE) and len(content) > 12 else None


def _codestream(file: IO[bytes]) -> int | None:
    """Return the position of the image in a file of boxes."""
    at = 0
    for _ in range(MOST_BOXES):
        file.seek(at)
        head = file.read(16)
        if len(head) < 8:
            return None
        length, kind = int.from_bytes(head[:4], "big"), head[4:8]
        body = 16 if length == 1 else 8
        if kind == b"jxlc":
            return at + body
        if kind == b"jxlp":  # after the number of the part
            return at + body + 4
        length = int.from_bytes(head[8:16], "big") if length == 1 else length
        if length < body:
            return None
        at += length
    return None


class _Bits:
    """The bits of a byte string, lowest first."""

    def __init__(self, content: bytes):
        self.number = int.from_bytes(content, "little")

    def take(self, count: int) -> int:
        value = self.number & ((1 << count) - 1)
        self.number >>= count
        return value


def _size(bits: _Bits) -> tuple[int, int]:
    small = bits.take(1)

    def side() -> int:
        return 8 * (bits.take(5) + 1) if small else bits.take(WIDTHS[bits.take(2)]) + 1

    height = side()
    ratio = bits.take(3)
    if not ratio:
        return side(), height
    upper, lower = RATIOS[ratio - 1]
    return height * upper // lower, height
