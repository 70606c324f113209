"""Counter-based random numbers, which do not depend on earlier draws.

Every number is a hash of (seed, epoch, image index, view, slot), so a view can be reproduced
alone, in another batch, on another device or after a resume. The hash is the output function of
SplitMix64 (Steele et al., OOPSLA 2014, doi:10.1145/2660193.2660195) applied once per key.
Global random state is neither read nor changed.
"""

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_SHIFTS = (30, 27, 31)
_MASK = (1 << 64) - 1


def _signed(word: int) -> int:
    """Return the int64 with the same bits as the unsigned ``word``."""
    return word - (1 << 64) if word >> 63 else word


def _mix_int(word: int) -> int:
    """Apply the output function of SplitMix64 to one unsigned 64-bit number."""
    for shift, multiplier in zip(_SHIFTS, _MULTIPLIERS, strict=False):
        word = ((word ^ (word >> shift)) * multiplier) & _MASK
    return word ^ (word >> _SHIFTS[2])


def _shift_right(word: Tensor, bits: int) -> Tensor:
    """Shift right logically: torch shifts int64 arithmetically, so mask the sign bits."""
    return (word >> bits) & ((1 << (64 - bits)) - 1)


def _mix(word: Tensor) -> Tensor:
    """Apply the output function of SplitMix64 to int64 tensors; products wrap around."""
    for shift, multiplier in zip(_SHIFTS, _MULTIPLIERS, strict=False):
        word = (word ^ _shift_right(word, shift)) * _signed(multiplier)
    return word ^ _shift_right(word, _SHIFTS[2])


def random_bits(seed: int, epoch: int, index_B: Tensor, view: int, slots: int) -> Tensor:
    """Return 64 random bits for every image and slot.

    Args:
        seed, epoch, view: integers; different values give independent numbers.
        index_B: int64 position of each image in its store.
        slots: numbers per image. Slot k does not depend on how many are drawn.

    Returns:
        (B, slots) int64 on the device of ``index_B``.
    """
    key = 0
    for part in (seed, epoch, view):
        key = _mix_int((key + _GOLDEN + int(part)) & _MASK)
    image_key_B = _mix(index_B.to(torch.int64) + _signed(key))
    counter_K = torch.arange(1, slots + 1, device=index_B.device) * _signed(_GOLDEN)
    return _mix(image_key_B[:, None] + counter_K)


def uniform(
    seed: int,
    epoch: int,
    index_B: Tensor,
    view: int,
    slots: int,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Return uniform numbers in [0, 1) for every image and slot; see :func:`random_bits`.

    The top 24 (float32) or 53 (float64) bits are used, so the conversion is exact and 1 is never
    returned.

    Returns:
        (B, slots) of ``dtype`` on the device of ``index_B``.
    """
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"dtype must be float32 or float64, got {dtype}")
    digits = 24 if dtype == torch.float32 else 53
    bits_BK = random_bits(seed, epoch, index_B, view, slots)
    return _shift_right(bits_BK, 64 - digits).to(dtype) * 2.0**-digits
