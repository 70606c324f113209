"""Serialization of coded weights: bytes, and the facts needed to decode them."""

import math
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from torch import Tensor

from ssdistill.artifacts.coding import packing
from ssdistill.artifacts.coding.codes import MOST, Coded, Palette, Sparse, Uniform
from ssdistill.errors import UserError

Facts = dict[str, Any]
Count = Annotated[int, Field(ge=0, le=2**31 - 1)]


class CodeFacts(BaseModel):
    """Header entry of one coded weight, or of an alias of another weight."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    kind: Literal["uniform", "palette", "sparse"] | None = None
    shape: Annotated[list[Count], Field(max_length=8)] = []
    same: str | None = None
    book: str | None = None
    half: bool = False
    half_zero: bool = False
    bits: Annotated[int, Field(ge=1, le=packing.WIDEST)] = 1
    scales: Count = 0
    kept: Count = 0
    places: Count = 0
    k: Annotated[int, Field(ge=1, le=MOST)] = 1
    rows: bool = False

    @property
    def numbers(self) -> int:
        """How many numbers the weight has."""
        return math.prod(self.shape)


FACTS = TypeAdapter(dict[str, CodeFacts])


def write(code: Coded, entropy: bool = True, book: bool = True) -> tuple[bytes, Facts]:
    """The bytes of a code, and facts (JSON values) to :func:`read` them with.

    Args:
        entropy: Huffman's code instead of a fixed width where that is shorter.
        book: whether its codebook is among the bytes, or kept elsewhere.
    """
    facts: Facts = {"kind": code.kind, "shape": list(code.shape)}
    head, body = b"", b""
    if isinstance(code, Uniform):
        head, facts["half"] = _write_floats(code.scale)
        facts |= {"bits": code.bits, "scales": code.scale.numel()}
        if code.zero is not None:
            zeros, facts["half_zero"] = _write_floats(code.zero)
            head += zeros
        symbols_N = _array(code.integers).astype(int) - code.low
        return head + packing.write_symbols(symbols_N, code.bits, entropy), facts
    if isinstance(code, Sparse):
        head = packing.write_mask(_array(code.mask), entropy)
        facts |= {"kept": int(code.mask.sum()), "places": len(head)}
        if code.index is None:
            body, facts["half"] = _write_floats(code.values)
            return head + body, facts
    facts |= {"k": code.book.shape[-1], "rows": code.book.ndim == 2}
    if book:
        body, facts["half"] = _write_floats(code.book)
    bits = packing.width_of(facts["k"])
    return head + body + packing.write_symbols(_array(code.index), bits, entropy), facts


def read(content: bytes, facts: Facts, book: Tensor | None = None) -> Coded:
    """The code that :func:`write` has written.

    Args:
        book: its codebook, where that is kept elsewhere.

    Raises:
        UserError, KeyError, TypeError, ValueError, RuntimeError: bytes or facts that it cannot
            have written.
    """
    shape = tuple(facts["shape"])
    count = math.prod(shape)
    if facts["kind"] == Uniform.kind:
        return _read_uniform(content, facts, shape)
    mask = None
    if facts["kind"] == Sparse.kind:
        places, content = content[: facts["places"]], content[facts["places"] :]
        mask = torch.from_numpy(packing.read_mask(places, count)).view(shape)
        count = facts["kept"]
        if "k" not in facts:
            return Sparse(mask, _read_floats(content, count, facts["half"])[0])
    elif facts["kind"] != Palette.kind:
        raise UserError(f"unknown kind of code {facts['kind']!r}")
    if book is None:
        rows = shape[0] if facts["rows"] else 1
        book, content = _read_floats(content, rows * facts["k"], facts["half"])
        book = book.view(rows, -1) if facts["rows"] else book
    index = packing.read_symbols(content, packing.width_of(book.shape[-1]), count)
    if mask is not None:
        return Sparse(mask, book, torch.from_numpy(index))
    return Palette(book, torch.from_numpy(index).view(shape))


def _read_uniform(content: bytes, facts: Facts, shape: tuple[int, ...]) -> Uniform:
    scale, content = _read_floats(content, facts["scales"], facts["half"])
    zero = None
    if "half_zero" in facts:
        zero, content = _read_floats(content, len(scale), facts["half_zero"])
    symbols = packing.read_symbols(content, facts["bits"], math.prod(shape)).astype(np.int16)
    low = 0 if zero is not None else -(2 ** (facts["bits"] - 1))
    return Uniform(
        scale, zero, torch.from_numpy(symbols + np.int16(low)).view(shape), facts["bits"]
    )


def coded_bytes(code: Coded, entropy: bool = True) -> int:
    """Bytes that a code takes in a file, with its codebook, scales and tables."""
    return len(write(code, entropy)[0])


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().contiguous().numpy().reshape(-1)


def _write_floats(tensor: Tensor) -> tuple[bytes, bool]:
    return packing.write_floats(_array(tensor.float()))


def _read_floats(content: bytes, count: int, half: bool) -> tuple[Tensor, bytes]:
    numbers, rest = packing.read_floats(content, count, half)
    return torch.from_numpy(numbers), rest
