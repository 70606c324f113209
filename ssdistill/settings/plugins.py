"""Plug-ins: packages of other people that add kinds, found or named but never chosen by a config.

A package is imported if it is installed with an entry point of the group ``ssdistill.plugins``, if
the user names it (``--import my_package``, ``ssdistill.add_plugin("my_package")``), or if a
program registers a class of its own (``ssdistill.register``). What a YAML file says imports
nothing.
"""

import hashlib
import importlib
import importlib.metadata
import inspect
import os
import pkgutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

from ssdistill.errors import UserError, one_line, shortened
from ssdistill.settings.code_identity import identity_of

GROUP = "ssdistill.plugins"
"""Group of entry points: each names a module whose classes are added, with those of its
submodules."""
NAMED = "SSDISTILL_IMPORT"
"""Environment variable by which ``--import`` reaches the processes that a command starts."""
FOLDER = "SSDISTILL_IMPORT_FOLDER"
"""Environment variable that tells them the folder in which the command was given."""
SKIPPED = ("tests", "conftest", "__main__", "setup")
"""Submodules that are not searched."""
PROGRAM = "__main__"
"""Package of classes that a script or a notebook defines."""


@dataclass
class Plugin:
    """One package that adds kinds.

    Attributes:
        package: name of its top-level module.
        version: of its distribution; None if it has none.
        modules: the modules whose classes are added.
        registered: classes that were registered one by one, each with the sha256 of its source.
    """

    package: str
    version: str | None = None
    modules: tuple[ModuleType, ...] = ()
    registered: dict[type, str] = field(default_factory=dict)

    def classes(self) -> Iterator[type]:
        """Every class that the package itself defines or a program registered."""
        yield from self.registered
        for module in self.modules:
            for value in list(vars(module).values()):
                if inspect.isclass(value) and package_of(value) == self.package:
                    yield value

    def identity(self, member: Any) -> dict[str, dict[str, str]]:
        """What hashes of stages contain of a class of it, by a name.

        Of a plug-in that is its version and the sha256 of its source; of a script or a notebook,
        that of the class and of what it uses.
        """
        if not self.modules:
            name = f"{self.package}.{member.__qualname__}"
            return {name: {"sha256": self.registered[member]}}
        facts = {"version": self.version or "", "sha256": _source_sha256(self.package)}
        return {self.package: facts}


PLUGINS: dict[str, Plugin] = {}
"""Every package that has been imported, by its name."""
FAILED: dict[str, str] = {}
"""Installed packages that cannot be imported, with the reason."""
INSTALLED: set[str] = set()
"""Packages that nobody has named: what of them cannot be used is ignored, with the reason."""
_imported: set[str] = set()
"""Groups of entry points that were looked through. Noted before their packages are imported, which
may look up kinds themselves."""


def package_of(member: Any) -> str:
    """Return the name of the top-level package that defines a class or a function."""
    while isinstance(member, partial):
        member = member.func
    return (member.__module__ or PROGRAM).partition(".")[0]


def plugins() -> list[Plugin]:
    """Every plug-in; imports those that are installed, or named by the parent process, once."""
    if GROUP not in _imported:
        _imported.add(GROUP)
        entries = importlib.metadata.entry_points(group=GROUP)
        for entry in sorted(entries, key=lambda entry: entry.name):
            try:
                INSTALLED.add(_import(entry.value.partition(":")[0]).package)
            except UserError as error:
                FAILED[entry.name] = str(error).partition(": ")[2]
        for name in _named():
            _import_here(name)
    return list(PLUGINS.values())


def import_plugin(name: str) -> Plugin:
    """Import a package and the modules in it, here and in processes that this one starts.

    Raises:
        UserError: it cannot be imported.
    """
    plugins()
    plugin = _import_here(name)
    os.environ[NAMED] = ",".join(dict.fromkeys((*_named(), name)))
    os.environ.setdefault(FOLDER, os.getcwd())
    return plugin


def variables_of_imports() -> dict[str, str]:
    """Environment variables by which another process imports what was named here."""
    return {name: os.environ[name] for name in (NAMED, FOLDER) if os.environ.get(name)}


def _named() -> list[str]:
    return [name for name in os.environ.get(NAMED, "").split(",") if name]


def register_class(member: type) -> Plugin:
    """Add a class of a program or a package; a later one of its name takes its place.

    Raises:
        UserError: its source cannot be read.
    """
    package = package_of(member)
    plugin = PLUGINS.setdefault(package, Plugin(package, _version(package)))
    name = member.__qualname__
    for other in [other for other in plugin.registered if other.__qualname__ == name]:
        del plugin.registered[other]
    plugin.registered[member] = identity_of(member)
    return plugin


def failures() -> str:
    """Say which installed plug-ins cannot be imported, as the end of a sentence."""
    return "".join(f"; the plug-in {name} is ignored: {why}" for name, why in FAILED.items())


def _import_here(name: str) -> Plugin:
    """Import what the user names, installed or in the current folder."""
    # Commands do not look there by themselves, other than `python -m`; last, so that it hides
    # nothing that is installed.
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())
    folder = os.environ.get(FOLDER)
    if folder and folder not in sys.path and os.path.isdir(folder):
        sys.path.append(folder)
    return _import(name)


def _import(name: str) -> Plugin:
    if not all(part.isidentifier() for part in name.split(".")):
        raise UserError(
            f"--import {shortened(name)}: is no name of a package; write it as in an import "
            "statement, such as my_package"
        )
    package = name.partition(".")[0]
    try:
        module = importlib.import_module(name)
        modules = (module, *_submodules(module))
    except (Exception, SystemExit) as error:  # a package may raise anything, and exit
        raise UserError(
            f"--import {name}: cannot be imported ({type(error).__name__}: {one_line(error)}); "
            "install the package, or run the command where it is"
        ) from error
    known = PLUGINS.setdefault(package, Plugin(package, _version(package)))
    known.modules = tuple(dict.fromkeys((*known.modules, *modules)))
    _source_sha256.cache_clear()
    return known


def _submodules(module: ModuleType) -> list[ModuleType]:
    found = []
    for info in pkgutil.iter_modules(getattr(module, "__path__", [])):
        if info.name in SKIPPED or info.name.startswith("test_"):
            continue
        below = importlib.import_module(f"{module.__name__}.{info.name}")
        found += [below, *_submodules(below)]
    return found


@cache
def _source_sha256(package: str) -> str:
    """sha256 over names and contents of the Python files of a package, or of its only file."""
    top = importlib.import_module(package)
    folders = [Path(folder) for folder in getattr(top, "__path__", [])]
    files = [(f.relative_to(d), f) for d in folders for f in sorted(d.rglob("*.py"))]
    if not folders and top.__file__:
        files = [(Path(Path(top.__file__).name), Path(top.__file__))]
    sha256 = hashlib.sha256()
    for name, path in files:
        if not {"tests", "__pycache__"} & set(name.parts):
            sha256.update(f"{name.as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return sha256.hexdigest()


def _version(package: str) -> str | None:
    if package == PROGRAM:
        return None
    names: Any = importlib.metadata.packages_distributions().get(package)
    return importlib.metadata.version(names[0]) if names else None
