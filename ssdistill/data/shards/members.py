"""Iterate over the headers of a tar archive, without extracting or reading contents.

Formats: POSIX.1-1988 (ustar), POSIX.1-2001 (pax) and GNU, as in Python's ``tarfile``, which is
several times slower.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

BLOCK = 512
REGULAR = (b"0", b"\0", b"7")
BARE = (b"1", b"2", b"3", b"4", b"5", b"6")
"""Links, devices, folders and pipes, which have no content."""
LONG_NAME, LONG_LINK, PAX, PAX_OF_ALL, SPARSE = b"L", b"K", b"x", b"g", b"S"
LONGEST = 1 << 20
"""Maximum size of a name or of pax records, in bytes."""
COMPRESSED = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ\0": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
}
"""First bytes of compressed files, the format, and the program that decompresses it."""


class DamagedTar(Exception):
    """The archive is truncated or invalid; the message names the byte."""


class Member(NamedTuple):
    """A file in an archive.

    Attributes:
        name: as stored, undecoded.
        head: offset of its headers.
        data: offset of its content.
        size: of its content in bytes.
    """

    name: bytes
    head: int
    data: int
    size: int


def members(read: Callable[[int, int], bytes], end: int) -> Iterator[Member]:
    """Yield the regular files of an archive in order.

    Args:
        read: returns up to the given number of bytes from an offset.
        end: size of the archive in bytes.

    Raises:
        DamagedTar: after all intact members: a header is invalid, or the archive is truncated. A
            member with truncated content is yielded first.
    """
    at = head = 0
    name: bytes | None = None
    size_of_pax: int | None = None
    while at < end:
        block = read(at, BLOCK)
        if len(block) < BLOCK:
            raise DamagedTar(f"truncated at byte {end}")
        if block.count(0) == BLOCK:
            return
        kind, size = _checked(block, at)
        data = at + BLOCK
        if kind in (LONG_NAME, PAX):
            body = _body(read, data, size, end)
            if kind == LONG_NAME:
                name = body.rstrip(b"\0")
            else:
                name, size_of_pax = _pax(body, name, at)
            at = _next_member(data, size)
            continue
        if kind in (LONG_LINK, PAX_OF_ALL):
            at = _next_member(data, size)
            continue
        size = size if size_of_pax is None else size_of_pax
        if kind == SPARSE:
            data = _after_maps(read, block, data, end)
        if kind in REGULAR:
            yield Member(_name(block) if name is None else name, head, data, size)
            if data + size > end:
                missing = data + size - end
                raise DamagedTar(f"truncated at byte {end}: {missing} bytes are missing")
        at = head = data if kind in BARE else _next_member(data, size)
        name = size_of_pax = None
    raise DamagedTar(f"truncated at byte {end}: the end-of-archive blocks are missing")


def _next_member(data: int, size: int) -> int:
    return data + (size + BLOCK - 1) // BLOCK * BLOCK


def _checked(block: bytes, at: int) -> tuple[bytes, int]:
    """Return type and size of a header.

    Raises:
        DamagedTar: the checksum differs (computed with spaces in its own field).
    """
    total = sum(block) - sum(block[148:156]) + 8 * 32
    try:
        stated, size = _number(block[148:156]), _number(block[124:136])
    except ValueError:
        stated = size = -1
    if stated != total or size < 0:
        raise DamagedTar(f"invalid header at byte {at}")
    return block[156:157], size


def _number(field: bytes) -> int:
    """Read an octal number, or one of base 256 with the highest bit set (GNU)."""
    if field[0] & 0x80:
        # Negative numbers begin with 0xFF.
        return -1 if field[0] == 0xFF else int.from_bytes(field[1:], "big")
    return int(field.split(b"\0", 1)[0].strip() or b"0", 8)


def _name(block: bytes) -> bytes:
    name = block[:100].split(b"\0", 1)[0]
    prefix = block[345:500].split(b"\0", 1)[0]
    return prefix + b"/" + name if prefix and block[257:263] == b"ustar\0" else name


def _body(read: Callable[[int, int], bytes], data: int, size: int, end: int) -> bytes:
    if size > LONGEST:
        raise DamagedTar(f"a name of {size} bytes at byte {data} is too long")
    body = read(data, size)
    if len(body) < size:
        raise DamagedTar(f"truncated at byte {end}")
    return body


def _pax(body: bytes, name: bytes | None, at: int) -> tuple[bytes | None, int | None]:
    """Return name and size of the next member; each line is a record ``LENGTH KEY=VALUE``."""
    size, start = None, 0
    try:
        while start < len(body) and body[start]:
            length, _, _ = body[start : start + 20].partition(b" ")
            record = body[start + len(length) + 1 : start + int(length) - 1]
            key, _, value = record.partition(b"=")
            if int(length) <= len(length):
                raise ValueError
            if key == b"path":
                name = value
            elif key == b"size":
                size = int(value)
                if size < 0:
                    raise ValueError
            start += int(length)
    except ValueError:
        raise DamagedTar(f"invalid extended header at byte {at}") from None
    return name, size


def _after_maps(read: Callable[[int, int], bytes], block: bytes, data: int, end: int) -> int:
    """Return the offset of the content of a sparse file, after any maps of its holes."""
    more = block[482]
    while more and data < end:
        more = (read(data, BLOCK) or bytes(BLOCK))[-8]
        data += BLOCK
    return data
