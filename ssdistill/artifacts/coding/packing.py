"""Bit packing: small integers at a fixed width or by Huffman coding; masks; floats.

By hand, as `huffman` is: what has been written must stay readable.
"""

import numpy as np

from ssdistill.artifacts.coding import huffman
from ssdistill.errors import UserError

WIDEST = 8
FIXED, HUFFMAN = 0, 1
BITMAP, GAPS = 0, 1
SKIP = 2**WIDEST - 1
"""As a gap: so many places that are False, and no True after them yet."""


def width_of(count: int) -> int:
    """Bits that tell ``count`` different symbols apart, at least 1."""
    return max(int(count - 1).bit_length(), 1)


def pack(symbols_N: np.ndarray, bits: int) -> bytes:
    """Symbols side by side, ``bits`` bits each, the highest bit first.

    Args:
        symbols_N: integers from 0 to ``2**bits - 1``.
        bits: 1 to 8.

    Raises:
        UserError: a symbol that does not fit, or such a width.
    """
    if not 1 <= bits <= WIDEST:
        raise UserError(f"bits must be between 1 and {WIDEST}, got {bits}")
    if symbols_N.size and not 0 <= symbols_N.min() <= symbols_N.max() < 2**bits:
        raise UserError(
            f"symbols from {symbols_N.min()} to {symbols_N.max()} do not fit in {bits} bits"
        )
    bits_N8 = np.unpackbits(symbols_N.astype(np.uint8)[:, None], axis=1)
    return np.packbits(bits_N8[:, WIDEST - bits :]).tobytes()


def unpack(content: bytes, bits: int, count: int) -> np.ndarray:
    """The ``count`` symbols (uint8) that :func:`pack` has written.

    Raises:
        UserError: another number of bytes than they take.
    """
    if len(content) != -(-bits * count // 8):
        raise UserError(f"{len(content)} bytes cannot hold {count} symbols of {bits} bits")
    flat = np.unpackbits(np.frombuffer(content, np.uint8), count=bits * count)
    bits_N8 = np.zeros((count, WIDEST), np.uint8)
    bits_N8[:, WIDEST - bits :] = flat.reshape(count, bits)
    return np.packbits(bits_N8, axis=1)[:, 0]


def write_symbols(symbols_N: np.ndarray, bits: int, entropy: bool = True) -> bytes:
    """Symbols behind one byte that says how they are written: whichever way is shorter.

    The tables of Huffman's code are among the bytes.

    Args:
        symbols_N: integers from 0 to ``2**bits - 1``.
        entropy: False for a fixed width in any case.
    """
    fixed = pack(symbols_N, bits)
    if entropy and symbols_N.size:
        coded = huffman.encode(symbols_N, 2**bits)
        if len(coded) < len(fixed):
            return bytes([HUFFMAN]) + coded
    return bytes([FIXED]) + fixed


def read_symbols(content: bytes, bits: int, count: int) -> np.ndarray:
    """The ``count`` symbols (uint8) that :func:`write_symbols` has written.

    Raises:
        UserError: bytes that it cannot have written.
    """
    if content[:1] == bytes([HUFFMAN]):
        return huffman.decode(content[1:], 2**bits, count)
    if content[:1] != bytes([FIXED]):
        raise UserError(f"unknown encoding of symbols {content[:1]!r}")
    return unpack(content[1:], bits, count)


def write_mask(mask_N: np.ndarray, entropy: bool = True) -> bytes:
    """Where a bool array is True: a bit each, or the gaps in between, whichever is shorter.

    A gap is the number of places between one True and the next; either way Huffman's code
    takes what is regular (Han et al., ICLR 2016, arXiv:1510.00149, store fixed-width gaps).
    """
    bitmap = np.packbits(mask_N)
    gaps = np.diff(np.flatnonzero(mask_N), prepend=-1) - 1
    symbols = np.full(len(gaps) + int((gaps // SKIP).sum()), SKIP)
    symbols[np.arange(len(gaps)) + np.cumsum(gaps // SKIP)] = gaps % SKIP
    ways = (
        bytes([BITMAP]) + write_symbols(bitmap, 8, entropy),
        bytes([GAPS]) + len(symbols).to_bytes(4, "little") + write_symbols(symbols, 8, entropy),
    )
    return min(ways, key=len)


def read_mask(content: bytes, count: int) -> np.ndarray:
    """The bool array (count,) that :func:`write_mask` has written.

    Raises:
        UserError: bytes that it cannot have written.
    """
    if content[:1] == bytes([BITMAP]):
        bitmap = read_symbols(content[1:], 8, -(-count // 8))
        return np.unpackbits(bitmap, count=count).astype(bool)
    symbols = read_symbols(content[5:], 8, int.from_bytes(content[1:5], "little")).astype(int)
    places = np.cumsum(np.where(symbols == SKIP, SKIP, symbols + 1)) - 1
    places = places[symbols != SKIP]
    if content[:1] != bytes([GAPS]) or (len(places) and places[-1] >= count):
        raise UserError(f"{len(content)} bytes are not a valid mask of {count} entries")
    mask_N = np.zeros(count, bool)
    mask_N[places] = True
    return mask_N


def write_floats(numbers_N: np.ndarray) -> tuple[bytes, bool]:
    """Numbers as float16 where that loses nothing, else as float32; and whether as float16."""
    with np.errstate(over="ignore"):
        half = numbers_N.astype("<f2")
    lossless = bool((half.astype(np.float32) == numbers_N).all())
    return (half if lossless else numbers_N.astype("<f4")).tobytes(), lossless


def read_floats(content: bytes, count: int, half: bool) -> tuple[np.ndarray, bytes]:
    """The ``count`` numbers (float32) at the beginning, and the bytes after them.

    Raises:
        ValueError: fewer bytes than they take.
    """
    kind = np.dtype("<f2" if half else "<f4")
    numbers = np.frombuffer(content, kind, count=count).astype(np.float32)
    return numbers, content[count * kind.itemsize :]
