"""A safe unpickler: restores tensors and containers, replaces all else by inert objects.

A pickle is a program that may name any function and have it called. Here the names it looks up
lead only to what this module defines, so there is nothing else it could call. To set an attribute
of something a pickle asks it for ``__setstate__`` first, which every class here has; that a class
is queried, and not an object of it, makes no difference.
"""

import pickle
import pickletools
import re
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch._utils import _rebuild_tensor

NUMBERS = re.compile(r"[<>=|]?(f2|f4|f8|i1|i2|i4|i8|u1|b1)")
"""Numpy's names of the number types that tensors have too."""


class Inert:
    """Stand-in for any other object: accepts any call and does nothing."""

    __slots__ = ()
    # torch looks this up on pickled modules, and would write a file if it were true.
    dump_patches = False

    def __new__(cls, *args: Any, **named: Any) -> "Inert":
        return object.__new__(cls)

    def __init__(self, *args: Any, **named: Any):
        pass

    def __call__(self, *args: Any, **named: Any) -> "Inert":
        return Inert()

    def _ignore(self, *args: Any) -> None:
        pass

    __setstate__ = __setitem__ = append = extend = add = _ignore


class Mapping(dict):
    """Stand-in for the standard library's dict types."""

    __slots__ = ()

    def __init__(self, *args: Any):
        # A defaultdict is made from its factory, which is none of our business.
        super().__init__(*(a for a in args if isinstance(a, (dict, list))))

    def __setstate__(self, *args: Any) -> None:
        pass


class Unusable:
    """Stand-in for a tensor that is not a plain array of numbers."""

    __slots__ = ("why",)

    def __init__(self, why: str):
        self.why = why

    def __setstate__(self, *args: Any) -> None:
        pass


class NumberType:
    """What a pickle tells of a numpy dtype."""

    __slots__ = ("name", "order")

    def __init__(self, name: Any = None, *args: Any):
        self.name, self.order = name, "="

    def __setstate__(self, state: Any) -> None:
        self.order = state[1]


class Array:
    """What a pickle tells of a numpy array."""

    __slots__ = ("state",)

    def __init__(self, *args: Any):
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def tensor(self) -> Tensor | None:
        """Its numbers; None for an array of something else, or what only claims to be one."""
        try:
            return self._numbers()
        except (AttributeError, TypeError, ValueError):
            return None

    def _numbers(self) -> Tensor | None:
        _, shape, dtype, by_column, content = self.state
        name = dtype.name.decode() if isinstance(dtype.name, bytes) else str(dtype.name)
        if not NUMBERS.fullmatch(name):
            return None
        if isinstance(content, str):
            content = content.encode("latin1")
        plain_dtype = np.dtype(name).newbyteorder("=" if dtype.order == "|" else dtype.order)
        array = np.frombuffer(content, plain_dtype).reshape(shape, order="F" if by_column else "C")
        return torch.from_numpy(np.array(array, plain_dtype.newbyteorder("="), order="C"))


class _Function:
    """A function that a pickle may call, with nothing about it that the pickle could change."""

    __slots__ = ("_run",)

    def __init__(self, run: Any):
        self._run = run

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self._run(*args, **named)


def _tensor(storage: Any, offset: int, size: tuple, stride: tuple, *_: Any) -> Tensor:
    return _rebuild_tensor(storage, offset, size, stride)


def _encode(text: str, encoding: str = "latin1") -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encodes as {encoding}")
    return text.encode("latin1")


FUNCTIONS = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
    "torch._tensor._rebuild_from_type_v2": lambda rebuild, kind, args, state: rebuild(*args),
    "_codecs.encode": _encode,
    "numpy.core.multiarray._reconstruct": lambda *_: Array(),
    "numpy._core.multiarray._reconstruct": lambda *_: Array(),
}
TENSORS = re.compile(r"torch\.(_utils|_tensor|nested\._internal\.\w+)\.(_?rebuild_\w+)")
"""Functions that make other kinds of tensors than the above."""
KINDS = {
    "_rebuild_sparse_tensor": "is sparse: save tensor.to_dense()",
    "_rebuild_qtensor": "is quantized: save tensor.dequantize()",
    "_rebuild_meta_tensor_no_storage": "is on the meta device and has no data: save the weights "
    "after loading them",
    "_rebuild_nested_tensor": "is a nested tensor: save its parts separately",
}
CLASSES = {
    "collections.OrderedDict": Mapping,
    "collections.defaultdict": Mapping,
    "numpy.dtype": NumberType,
}
DTYPES = {f"torch.{name}": d for name, d in vars(torch).items() if isinstance(d, torch.dtype)}


LARGEST_MEMO = 10_000_000


def refuse_bombs(file: Any) -> None:
    """Reject a pickle that would exhaust memory, by its opcodes; the file position is restored.

    Raises:
        pickle.UnpicklingError: it would take memory out of proportion to its size, by the number
            of a place in its memo; or it ends before its end.
        ValueError: it is no pickle.
    """
    start = file.tell()
    for opcode, argument, _ in pickletools.genops(file):
        # These two have a number; the argument of other opcodes may be anything.
        if opcode.name in ("PUT", "LONG_BINPUT") and cast("int", argument) > LARGEST_MEMO:
            raise pickle.UnpicklingError(f"it requests a memo of {argument} entries")
    file.seek(start)


class Unpickler(pickle.Unpickler):
    """Unpickler that resolves every global name from an allowlist."""

    def __init__(self, file: Any, **settings: Any):
        refuse_bombs(file)
        super().__init__(file, **settings)

    def find_class(self, module: str, name: str) -> Any:
        dotted = f"{module}.{name}"
        if dotted in FUNCTIONS:
            return _Function(FUNCTIONS[dotted])
        if dotted not in CLASSES and (match := TENSORS.fullmatch(dotted)):
            why = KINDS.get(match[2], f"is of a type that requires {dotted}: save a plain tensor")
            return _Function(lambda *args, **named: Unusable(why))
        return (CLASSES | DTYPES).get(dotted, Inert)


def load(file: Any, **settings: Any) -> Any:
    """The next pickle in a file."""
    return Unpickler(file, **settings).load()


AS_PICKLE = SimpleNamespace(Unpickler=Unpickler, load=load, __name__="inert")
"""In the form in which ``torch.load`` takes a pickle module."""
