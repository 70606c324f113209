"""Modules that are functions, too: ``ssdistill.distill(…)``, ``ssdistill.losses.simreg(…)``.

A name like ``ssdistill.distill`` is a package, wherever it is imported. Python sets a module as an
attribute of the package above it; there its class becomes one that can be called.
"""

import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

Find = Callable[[str], Callable[..., Any] | None]
"""From the name of a module, without its package, to the function that it is."""


class CallableModule(ModuleType):
    """A module that can be called."""

    _find: Find

    def _function(self) -> Callable[..., Any]:
        name = self.__name__.rpartition(".")[2]
        function = self._find(name)
        if function is None:
            raise TypeError(f"module {self.__name__} cannot be called")
        return function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function()(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._function())


class _Parent(ModuleType):
    """A package, some of whose modules can be called."""

    _is_called: Callable[[str], bool]
    _find: Find

    def __setattr__(self, name: str, value: Any) -> None:
        own = isinstance(value, ModuleType) and value.__name__ == f"{self.__name__}.{name}"
        if own and type(value) is ModuleType and self._is_called(name):
            value.__dict__["_find"] = self._find
            value.__class__ = CallableModule
        super().__setattr__(name, value)


def make_callable(package: str, is_called: Callable[[str], bool], find: Find) -> None:
    """Let modules of a package be called; the package says so before it imports any of them.

    Args:
        is_called: whether the module of that name, in the package, is one of them.
        find: its function; called when the module is.
    """
    module = sys.modules[package]
    module.__dict__.update(_is_called=is_called, _find=find)
    module.__class__ = _Parent
