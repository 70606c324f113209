"""What tells functions, classes and modules of a program apart: source, values, and what they use.

Results are kept by it: two networks with one identity share finished stages.
"""

import hashlib
import inspect
import sys
import types
from collections.abc import Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ssdistill.errors import UserError

PLAIN = bool, int, float, complex, str, bytes, type(None), type(...), torch.dtype, torch.device
OF_MODULES = {"_parameters", "_buffers", "_modules", "training", "_non_persistent_buffers_set"}
"""Attributes of every ``nn.Module`` that are weights, or no part of what it computes."""
INSTALLED = {"site-packages", "dist-packages"}
"""Folders of packages; those of one environment may be used from another."""
LIBRARY = "ssdistill"
"""Known by its versions, wherever it is installed."""


def identity_of(member: Any) -> str:
    """sha256 (hex) of what a function, class or object is, and of what it uses.

    It contains source, defaults, captured values, and in the same way all functions, classes and
    values of the program that the source names; of a module also the attributes of all its
    submodules, but no weights. Members of installed packages count by their names.

    Raises:
        UserError: the source of a function or class of the program cannot be read.
    """
    return hashlib.sha256("\0".join(_Walk().parts(member)).encode()).hexdigest()


class _Walk:
    """One look through everything that a member refers to, each thing once."""

    def __init__(self) -> None:
        # Objects are kept, so that no other one gets their number.
        self._seen: dict[int, tuple[int, Any]] = {}

    def parts(self, value: Any) -> Iterator[str]:
        if isinstance(value, PLAIN):
            yield f"{type(value).__name__} {value!r}"
            return
        if id(value) in self._seen:
            yield f"again {self._seen[id(value)][0]}"
            return
        self._seen[id(value)] = len(self._seen), value
        yield f"{type(value).__module__}.{type(value).__qualname__}"
        if isinstance(value, Mapping):
            yield from self._mapping(value)
        elif isinstance(value, tuple | list):
            for item in value:
                yield from self.parts(item)
            yield "end"
        elif isinstance(value, set | frozenset):
            yield from sorted(" ".join(_Walk().parts(item)) for item in value)
        elif isinstance(value, Tensor | np.ndarray):
            yield _array(value)
        elif isinstance(value, Path):
            yield str(value)
        elif isinstance(value, types.ModuleType):
            yield value.__name__
        else:
            yield from self._code(value)

    def _mapping(self, values: Mapping[Any, Any]) -> Iterator[str]:
        for key in sorted(values, key=repr):
            yield repr(key)
            yield from self.parts(values[key])
        yield "end"

    def _code(self, value: Any) -> Iterator[str]:
        if isinstance(value, partial):
            yield from self.parts((value.func, value.args, value.keywords))
        elif isinstance(value, types.MethodType):
            yield from self.parts((value.__func__, value.__self__))
        elif isinstance(value, types.FunctionType):
            yield from self._function(value)
        elif isinstance(value, type):
            yield from self._class(value)
        elif isinstance(value, nn.Module):
            yield from self._module(value)
        elif isinstance(value, classmethod | staticmethod):
            yield from self.parts(value.__func__)
        elif isinstance(value, property):
            yield from self.parts((value.fget, value.fset))
        elif name := getattr(value, "__qualname__", ""):
            yield f"{getattr(value, '__module__', '')}.{name}"
        elif hasattr(value, "__dict__"):
            yield from self._object(value)

    def _function(self, function: types.FunctionType) -> Iterator[str]:
        if not _is_of_program(function):
            yield f"{function.__module__}.{function.__qualname__}"
            return
        yield source_of(function)
        code = function.__code__
        if function.__name__ == "<lambda>":  # several in one line have one source
            yield repr([c for c in code.co_consts if isinstance(c, PLAIN)])
            yield repr(code.co_names)
        yield from self.parts((function.__defaults__, function.__kwdefaults__))
        names = dict(zip(code.co_freevars, function.__closure__ or (), strict=True))
        for name, cell in names.items():
            yield name
            try:
                yield from self.parts(cell.cell_contents)
            except ValueError:
                yield "not assigned yet"
        known = function.__globals__
        for name in sorted(_names(code)):
            if name in known:
                yield name
                yield from self.parts(known[name])

    def _class(self, cls: type) -> Iterator[str]:
        yield f"{cls.__module__}.{cls.__qualname__}"
        if not _is_of_program(cls):
            return
        yield source_of(cls)
        yield from self.parts(cls.__bases__)
        for name, member in vars(cls).items():
            if isinstance(member, types.FunctionType | classmethod | staticmethod | property):
                yield name
                yield from self.parts(member)

    def _object(self, value: Any) -> Iterator[str]:
        if _is_of_program(type(value)):
            yield from self.parts(type(value))
            yield from self._mapping(vars(value))
        else:
            # Objects of others hold locks, streams and numbers of their own.
            yield from self._mapping({n: v for n, v in vars(value).items() if _is_plain(v)})

    def _module(self, module: nn.Module) -> Iterator[str]:
        yield from self.parts(type(module))
        own = {n: v for n, v in vars(module).items() if n not in OF_MODULES and "_hook" not in n}
        yield from self._mapping(own)
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            yield from self.parts([*hooks.values()])  # their keys are counted
        for store in ("_parameters", "_buffers"):
            tensors = getattr(module, store)
            facts = {n: None if x is None else (*x.shape, x.dtype) for n, x in tensors.items()}
            yield from self._mapping(facts)
        # Buffers that are not saved are no weights.
        kept = module._non_persistent_buffers_set
        yield from self._mapping({n: module._buffers[n] for n in kept})
        for name, child in module.named_children():
            yield name
            yield from self.parts(child)


def _names(code: types.CodeType) -> set[str]:
    """Names that code looks up, also those of functions within it."""
    inner = (_names(c) for c in code.co_consts if isinstance(c, types.CodeType))
    return set(code.co_names).union(*inner)


def _array(values: Tensor | np.ndarray) -> str:
    array = values.detach().cpu().contiguous() if isinstance(values, Tensor) else values
    if isinstance(array, Tensor):
        array = array.flatten().view(torch.uint8).numpy() if array.numel() else np.zeros(0)
    content = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
    return f"{values.dtype} {tuple(values.shape)} {content}"


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(item, PLAIN) for item in value.values())
    if isinstance(value, tuple | list):
        return all(isinstance(item, PLAIN) for item in value)
    return isinstance(value, PLAIN)


@cache
def _is_installed(file: str) -> bool:
    """Whether a file is of an installed package, of any environment, or compiled."""
    path = Path(file).resolve()
    return bool(INSTALLED.intersection(path.parts)) or path.suffix != ".py"


def _is_of_program(member: Any) -> bool:
    """Whether a function or class is no part of Python, ssdistill or an installed package."""
    top = (getattr(member, "__module__", None) or "").partition(".")[0]
    if top in sys.stdlib_module_names or top in ("builtins", LIBRARY):
        return top == "__main__"
    module = sys.modules.get(member.__module__ or "")
    file = getattr(module, "__file__", None)
    return file is None or not _is_installed(file)


def source_of(member: Any) -> str:
    """Return the source of a class or a function.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return inspect.getsource(member)
    except (OSError, TypeError) as error:
        # Of classes in notebooks Python 3.11 finds the methods alone.
        methods = [v for v in getattr(member, "__dict__", {}).values() if inspect.isfunction(v)]
        try:
            if not methods and not isinstance(member, type):
                raise
            return "".join([member.__qualname__, *map(inspect.getsource, methods)])
        except (OSError, TypeError):
            name = getattr(member, "__qualname__", type(member).__qualname__)
            raise UserError(
                f"{name}: its source cannot be read, and results are kept by the source of what "
                "made them; define it in a file or in a notebook's cell"
            ) from error
