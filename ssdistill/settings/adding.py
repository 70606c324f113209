"""Add kinds while a program runs: those of a package by its name, or a class of the program."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

from ssdistill.errors import UserError
from ssdistill.settings import rebuild_settings
from ssdistill.settings.plugins import NAMED, PLUGINS, import_plugin, register_class
from ssdistill.settings.registry import REGISTRIES, Registry, imported

Member = TypeVar("Member")


def add_plugin(name: str) -> None:
    """Import a package by name and add the kinds that it and its modules define.

    Raises:
        UserError: it cannot be imported, or one of its kinds is another class's.
    """
    with _undone_if_refused():
        import_plugin(name)
        look_again()


def register(cls: type[Member]) -> type[Member]:
    """Add a class with a ``kind`` that a program or a notebook defines; a decorator.

    Defining it again, with other code, puts the new class in place of the old one.

    Raises:
        UserError: it is no loss, method, teacher, step, protocol, source or runtime, it has no
            ``kind``, its kind is another class's, or its source cannot be read.
    """
    bases = [registry for registry in REGISTRIES if issubclass(cls, imported(registry.base))]
    if not bases or "kind" not in vars(cls):
        families = ", ".join(registry.noun for registry in REGISTRIES)
        raise UserError(
            f"{cls.__qualname__}: a class with a kind, derived from the base of a family, can be "
            f"registered ({families})"
        )
    with _undone_if_refused():
        register_class(cls)
        look_again()
    return cls


@contextmanager
def _undone_if_refused() -> Iterator[None]:
    """Leave things as they were where what a block adds cannot be used."""
    before = {
        name: replace(plugin, registered=dict(plugin.registered))
        for name, plugin in PLUGINS.items()
    }
    named = os.environ.get(NAMED)
    try:
        yield
    except UserError:
        PLUGINS.clear()
        PLUGINS.update(before)
        if named is None:
            os.environ.pop(NAMED, None)
        else:
            os.environ[NAMED] = named
        look_again()
        raise


def look_again() -> None:
    """Read the classes anew, so that a clash is found here, and let models know them."""
    before = [tuple(vars(registry).get("classes", {}).values()) for registry in REGISTRIES]
    for registry in REGISTRIES:
        registry.forget()
    changed = [
        known
        for known, registry in zip(before, REGISTRIES, strict=True)
        if (known or _adds_to(registry)) and tuple(registry.classes.values()) != known and known
    ]
    if changed:
        rebuild_settings()


def _adds_to(registry: Registry) -> bool:
    """Whether a plug-in has a class of a family; looking for all kinds takes seconds."""
    base = imported(registry.base)
    classes = (cls for plugin in PLUGINS.values() for cls in plugin.classes())
    return any(issubclass(cls, base) and "kind" in vars(cls) for cls in classes)
