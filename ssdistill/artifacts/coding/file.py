"""A safetensors file for a state dict with coded tensors.

A coded tensor is an entry of bytes under its own name; what those mean is in the header of the
same file, so the bytes of the file are all there is to ship. By hand is that header alone, since
safetensors writes no entries that say how their bytes are coded.
"""

import json
import math
import struct
from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from torch import Tensor

from ssdistill.artifacts.build_limit import most_numbers
from ssdistill.artifacts.coding import packing
from ssdistill.artifacts.coding.codes import MOST, Coded, Palette, Sparse, Uniform, refresh
from ssdistill.errors import UserError
from ssdistill.models.downloads import reason

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


def write_code(code: Coded, entropy: bool = True, book: bool = True) -> tuple[bytes, Facts]:
    """The bytes of a code, and facts (JSON values) to :func:`read_code` them with.

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
    indexed: Any = code  # a palette, or a sparse weight that has a codebook
    facts |= {"k": indexed.book.shape[-1], "rows": indexed.book.ndim == 2}
    if book:
        body, facts["half"] = _write_floats(indexed.book)
    bits = packing.width_of(facts["k"])
    return head + body + packing.write_symbols(_array(indexed.index), bits, entropy), facts


def read_code(content: bytes, facts: Facts, book: Tensor | None = None) -> Coded:
    """The code that :func:`write_code` has written.

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
    return len(write_code(code, entropy)[0])


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().contiguous().numpy().reshape(-1)


def _write_floats(tensor: Tensor) -> tuple[bytes, bool]:
    return packing.write_floats(_array(tensor.float()))


def _read_floats(content: bytes, count: int, half: bool) -> tuple[Tensor, bytes]:
    numbers, rest = packing.read_floats(content, count, half)
    return torch.from_numpy(numbers), rest


BOOK = "codebook:"


def current(state: Mapping[str, Tensor], coded: Mapping[str, Coded]) -> dict[str, Coded]:
    """Select the codes that still match the weights of ``state``."""
    codes = {k: refresh(code, state[k]) for k, code in coded.items() if k in state}
    return {key: code for key, code in codes.items() if code is not None}


def pack_state(
    state: Mapping[str, Tensor], coded: Mapping[str, Coded], entropy: bool = True
) -> tuple[bytes, dict[str, int]]:
    """The content of the file, and the bytes of its tensors by how they are written.

    A codebook that several weights share is written once, and so is a weight that several
    layers share. A weight whose codes are no shorter than its numbers is written as numbers,
    unless it is sparse: its zeros have to be known.

    Args:
        state: plain tensors.
        coded: how some of them are to be written, by key; codes that are not
            :func:`current` are ignored.
        entropy: False for a fixed width instead of Huffman's code.

    Returns:
        the content, and bytes by kind: of a :class:`Coded`, ``codebook``, ``raw``, and
        ``header`` for the rest of the file.
    """
    same = _aliases(state)
    coded = {key: code for key, code in current(state, coded).items() if key not in same}
    uses = Counter(id(code.book) for code in coded.values())
    tensors: dict[str, Tensor] = {}
    books: dict[int, str] = {}
    facts: dict[str, Any] = {key: {"same": first} for key, first in same.items()}
    sizes: Counter[str] = Counter()
    for key in sorted(state.keys() - same.keys()):
        tensor = state[key]
        code = coded.get(key)
        book = code.book if code is not None else None
        shared = book is not None and uses[id(book)] > 1
        content, fact = (b"", {}) if code is None else write_code(code, entropy, not shared)
        if code is None or (len(content) >= tensor.nbytes and not isinstance(code, Sparse)):
            # safetensors refuses channels_last tensors and tensors that share memory.
            layout = torch.contiguous_format
            tensors[key] = tensor.detach().cpu().clone(memory_format=layout)
            sizes["raw"] += tensor.nbytes
            continue
        if shared and book is not None:
            name = books.setdefault(id(book), f"{BOOK}{len(books)}")
            tensors[name] = book.detach().cpu().float().clone()
            fact["book"] = name
        tensors[key] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        facts[key] = fact
        sizes[code.kind] += len(content)
    if books:
        sizes["codebook"] = sum(tensors[name].nbytes for name in books.values())
    metadata = {"coded": json.dumps(facts, separators=(",", ":"))}
    content = safetensors.torch.save(tensors, metadata)
    sizes["header"] = len(content) - sizes.total()
    return content, dict(sizes)


def _aliases(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Map keys of shared tensors to the first key of the same tensor."""
    first: dict[tuple, str] = {}
    aliases = {}
    for key in sorted(state):
        tensor = state[key]
        place = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), tensor.device)
        if tensor.numel() and first.setdefault(place, key) != key:
            aliases[key] = first[place]
    return aliases


def unpack_state(content: bytes) -> tuple[dict[str, Tensor], dict[str, Coded]]:
    """All tensors, decoded, and the codes of those that were coded.

    Raises:
        UserError: content that :func:`pack_state` cannot have written; the tensor is named.
    """
    tensors, facts = _unpack_facts(content)
    coded = {}
    for key, fact in facts.items():
        if fact.get("same") is not None:
            continue
        try:
            book = tensors[fact["book"]] if "book" in fact else None
            coded[key] = read_code(tensors[key].numpy().tobytes(), fact, book)
        except UserError as error:
            raise UserError(f"cannot decode '{key}': {error}") from error
        except Exception as error:  # codes that do not fit their facts fail anywhere
            raise UserError(f"cannot decode '{key}': {reason(error)}") from error
    state = {key: tensor for key, tensor in tensors.items() if not key.startswith(BOOK)}
    state |= {key: code.decode() for key, code in coded.items()}
    for key, fact in facts.items():
        if (same := fact.get("same")) is None:
            continue
        if same not in state:
            raise UserError(f"'{key}' refers to '{same}', which is missing")
        state[key] = state[same]
        if same in coded:
            coded[key] = coded[same]
    return state, coded


def _unpack_facts(content: bytes) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    """Read the raw tensors of a file, and the checked facts of coded ones.

    Raises:
        UserError: no such file, or one that stands for too many numbers.
    """
    try:
        tensors = safetensors.torch.load(content)
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])["__metadata__"]["coded"]
        facts = FACTS.validate_json(header)
    except Exception as error:  # of a damaged header almost anything
        raise UserError(
            f"not a safetensors file of coded weights: {' '.join(str(error).split())[:300]}"
        ) from error
    if sum(fact.numbers for fact in facts.values()) > most_numbers(len(content)):
        raise UserError("its coded weights decode to more values than a file of this size can hold")
    return tensors, {key: fact.model_dump(exclude_unset=True) for key, fact in facts.items()}
