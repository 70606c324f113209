"""Old names of modules: what version 0.1 called otherwise is imported from where it is now.

What stands for which old name is in `names`. Nothing in the package imports by an old name, and old
config keys are read by `experiment`. This folder may go with version 1.0.
"""

import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from types import CodeType, ModuleType
from typing import Any

from ssdistill.moved.names import MOVED, RENAMED

PACKAGE = "ssdistill"


class OldNames(MetaPathFinder, Loader):
    """Finds modules by the names they had in version 0.1."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The place of ``name`` if it is the old name of a module, else None."""
        package, _, old = name.partition(".")
        if package != PACKAGE or old not in MOVED:
            return None
        return ModuleSpec(name, self, is_package=any(m.startswith(f"{old}.") for m in MOVED))

    def exec_module(self, module: ModuleType) -> None:
        """Let ``module`` stand for the one that has its content now."""
        old = module.__name__.removeprefix(f"{PACKAGE}.")
        new = import_module(f"{PACKAGE}.{MOVED[old]}")
        _notify(old, MOVED[old])

        def attribute(name: str) -> Any:
            return getattr(*_present(old, name, new))

        module.__getattr__ = attribute  # type: ignore[method-assign]

    def get_code(self, name: str) -> CodeType:
        """The code of ``name``, which ``python -m`` runs."""
        old = name.removeprefix(f"{PACKAGE}.")
        _notify(old, MOVED[old])
        spec: Any = find_spec(f"{PACKAGE}.{MOVED[old]}")
        return spec.loader.get_code(spec.name)


class RenamedContent(MetaPathFinder):
    """Finds modules that are where they were in version 0.1, and adds their old names."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of ``name`` if something in it is called otherwise now, else None."""
        package, _, old = name.partition(".")
        if package != PACKAGE or old not in RENAMED or old in MOVED:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                run(module)
                module.__getattr__ = _old_names(old, module)  # type: ignore[method-assign]

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _old_names(old: str, module: ModuleType) -> Callable[[str], Any]:
    """What ``__getattr__`` of a module does that is where it was."""

    def attribute(name: str) -> Any:
        if name not in RENAMED[old]:
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
        place, now = _present(old, name, module)
        _notify(f"{old}.{name}", f"{place.__name__.removeprefix(f'{PACKAGE}.')}.{now}")
        return getattr(place, now)

    return attribute


def _present(old: str, name: str, new: ModuleType) -> tuple[ModuleType, str]:
    """The module that has what ``name`` was in the module ``old``, and its name there."""
    elsewhere, _, now = RENAMED.get(old, {}).get(name, name).rpartition(":")
    return import_module(f"{PACKAGE}.{elsewhere}") if elsewhere else new, now or name


def _notify(old: str, new: str) -> None:
    warnings.warn(
        f"{PACKAGE}.{old} is now {PACKAGE}.{new}; the old name will go with version 1.0",
        FutureWarning,
        stacklevel=3,
    )


def install() -> None:
    """Let old names be imported; :class:`OldNames` comes last, after modules that exist."""
    if not any(isinstance(finder, OldNames) for finder in sys.meta_path):
        sys.meta_path.append(OldNames())
        sys.meta_path.insert(0, RenamedContent())
