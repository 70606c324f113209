"""A safetensors file for a state dict with coded tensors.

A coded tensor is an entry of bytes under its own name; what those mean is in the header of the
same file, so the bytes of the file are all there is to ship.
"""

import json
import struct
from collections import Counter
from collections.abc import Mapping
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from ssdistill.artifacts.build_limit import most_numbers
from ssdistill.artifacts.coding import encoded as coded_bytes
from ssdistill.artifacts.coding.codes import Coded, Sparse, refresh
from ssdistill.errors import UserError
from ssdistill.models.downloads import reason

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
            :func:`current` are left out.
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
        content, fact = _write(code, entropy, shared)
        if code is None or (len(content) >= tensor.nbytes and not isinstance(code, Sparse)):
            # safetensors refuses channels_last tensors and tensors that share memory.
            layout = torch.contiguous_format
            tensors[key] = tensor.detach().cpu().clone(memory_format=layout)
            sizes["raw"] += tensor.nbytes
            continue
        if shared:
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


def _write(code: Coded | None, entropy: bool, shared: bool) -> tuple[bytes, dict[str, Any]]:
    return coded_bytes.write(code, entropy, not shared) if code is not None else (b"", {})


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
            coded[key] = coded_bytes.read(tensors[key].numpy().tobytes(), fact, book)
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
        facts = coded_bytes.FACTS.validate_json(header)
    except Exception as error:  # of a damaged header almost anything
        raise UserError(
            f"not a safetensors file of coded weights: {' '.join(str(error).split())[:300]}"
        ) from error
    if sum(fact.numbers for fact in facts.values()) > most_numbers(len(content)):
        raise UserError("its coded weights decode to more values than a file of this size can hold")
    return tensors, {key: fact.model_dump(exclude_unset=True) for key, fact in facts.items()}
