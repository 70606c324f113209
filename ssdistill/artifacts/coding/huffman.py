"""Canonical Huffman coding (Proc. IRE 1952), decoded in parallel with arrays.

The bytes are: the length of every symbol's code, half a byte each; how many bits every run of
``RUN`` symbols takes, two bytes each; the codes. Knowing where each run begins, all runs are
read side by side.

By hand: what has been written must stay readable, and zstandard or a range coder (constriction)
changes the size of a weight's codes by about 2 %, either way.
"""

import numpy as np

from ssdistill.errors import UserError

LONGEST = 15
"""Bits of the longest code: its length fits in half a byte, a run's in two bytes."""
RUN = 2048


def entropy(counts_K: np.ndarray) -> float:
    """Bits per symbol that no code of single symbols can go below (Shannon 1948)."""
    shares = counts_K[counts_K > 0] / counts_K.sum()
    return float(-(shares * np.log2(shares)).sum())


def code_lengths(counts_K: np.ndarray) -> np.ndarray:
    """Bits of every symbol's code: the best with no code above ``LONGEST`` bits.

    By package-merge (Larmore and Hirschberg, J. ACM 1990).

    Args:
        counts_K: how often each symbol occurs.

    Returns:
        integers (K,); 0 for a symbol that does not occur.
    """
    lengths_K = np.zeros(len(counts_K), np.uint8)
    used = np.flatnonzero(counts_K)
    if len(used) < 2:
        lengths_K[used] = 1
        return lengths_K
    coins: list[tuple[int, tuple[int, ...]]] = [
        (int(counts_K[symbol]), (int(symbol),)) for symbol in used
    ]
    coins.sort(key=lambda item: item[0])
    items = coins
    for _ in range(LONGEST - 1):
        pairs = zip(items[::2], items[1::2], strict=False)
        packages = [(a + b, left + right) for (a, left), (b, right) in pairs]
        items = sorted(coins + packages, key=lambda item: item[0])
    for _, symbols in items[: 2 * len(used) - 2]:
        np.add.at(lengths_K, list(symbols), 1)
    return lengths_K


def _codes(lengths_K: np.ndarray) -> np.ndarray:
    """The canonical codes: ascending with length, then with symbol."""
    codes_K = np.zeros(len(lengths_K), np.uint32)
    code = before = 0
    for symbol in np.lexsort((np.arange(len(lengths_K)), lengths_K)):
        length = int(lengths_K[symbol])
        if length:
            code = (code + 1) << (length - before) if before else 0
            codes_K[symbol], before = code, length
    return codes_K


def encode(symbols_N: np.ndarray, kinds: int) -> bytes:
    """Codes of all symbols, with everything needed to read them.

    Args:
        symbols_N: at least one integer, each from 0 to ``kinds - 1``.
        kinds: even number of symbols there may be, at most 256.
    """
    lengths_K = code_lengths(np.bincount(symbols_N, minlength=kinds))
    lengths_N = lengths_K[symbols_N]
    codes_N = _codes(lengths_K)[symbols_N]
    ends_N = np.cumsum(lengths_N, dtype=np.int64)
    starts_N = ends_N - lengths_N
    bits = np.zeros(ends_N[-1], np.uint8)
    for place in range(int(lengths_K.max())):
        coded_here = lengths_N > place
        shift = lengths_N[coded_here] - np.uint8(1 + place)
        bits[starts_N[coded_here] + place] = (codes_N[coded_here] >> shift) & 1
    run_ends = np.append(ends_N[RUN - 1 : -1 : RUN], ends_N[-1])
    runs = np.diff(run_ends, prepend=0).astype("<u2")
    table = lengths_K[::2] << 4 | lengths_K[1::2]
    return table.tobytes() + runs.tobytes() + np.packbits(bits).tobytes()


def decode(content: bytes, kinds: int, count: int) -> np.ndarray:
    """The ``count`` symbols (uint8) that :func:`encode` has written.

    Raises:
        UserError: bytes that it cannot have written.
    """
    runs = -(-count // RUN)
    table, rest = np.frombuffer(content[: kinds // 2], np.uint8), content[kinds // 2 :]
    sizes = np.frombuffer(rest[: 2 * runs], "<u2", count=min(runs, len(rest) // 2))
    payload = np.frombuffer(rest[2 * runs :], np.uint8)
    if len(sizes) != runs or -(-int(sizes.sum(dtype=np.int64)) // 8) != len(payload):
        raise UserError(f"{len(content)} bytes are not a valid Huffman code of {count} symbols")
    symbol_of, length_of = _lookup(np.stack([table >> 4, table & 15], axis=1).flatten())
    # The last run is read on to the length of the others: zeros for what is not there.
    padded = np.append(payload, np.zeros(RUN * LONGEST // 8 + 4, np.uint8)).astype(np.uint32)
    windows = padded[:-2] << 16 | padded[1:-1] << 8 | padded[2:]
    position = np.cumsum(sizes, dtype=np.int64) - sizes
    symbols = np.empty((min(RUN, count), runs), np.uint8)
    for row in symbols:
        shift = (24 - LONGEST - (position & 7)).astype(np.uint32)
        code = (windows[position >> 3] >> shift) & (2**LONGEST - 1)
        row[:] = symbol_of[code]
        position += length_of[code]
    return symbols.T.reshape(-1)[:count]


def _lookup(lengths_K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Symbol and code length by the next ``LONGEST`` bits.

    Raises:
        UserError: lengths that no code has.
    """
    symbol_of = np.zeros(2**LONGEST, np.uint8)
    length_of = np.ones(2**LONGEST, np.int64)
    used = np.flatnonzero(lengths_K)
    # Kraft's inequality: else two codes would begin alike.
    if (2.0 ** -lengths_K[used].astype(float)).sum() > 1:
        raise UserError("the code lengths of a Huffman table are inconsistent")
    for symbol, code in zip(used, _codes(lengths_K)[used], strict=True):
        free = LONGEST - int(lengths_K[symbol])
        span = slice(int(code) << free, (int(code) + 1) << free)
        symbol_of[span], length_of[span] = symbol, lengths_K[symbol]
    return symbol_of, length_of
