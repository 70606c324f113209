"""Write a package from templates."""

import importlib.metadata
import importlib.util
import keyword
import re
import sys
from importlib import resources
from pathlib import Path
from string import Template
from typing import NamedTuple

import timm
import yaml

from ssdistill.errors import UserError, shortened
from ssdistill.files import check_writable
from ssdistill.models.networks import find_network
from ssdistill.settings.plugins import SKIPPED
from ssdistill.settings.registry import (
    LOSSES,
    METHODS,
    PROTOCOLS,
    SOURCES,
    STEPS,
    TEACHERS,
    Registry,
)

LONGEST = 50


class Family(NamedTuple):
    """What differs between the packages of families.

    Attributes:
        summary: what a package of it is.
        table: of ``ssdistill list``.
        registry: of its kinds; None for networks, which have names.
        arguments: of the check in its test, after the class.
    """

    summary: str
    table: str
    registry: Registry | None = None
    arguments: str = ""


FAMILIES = {
    "loss": Family("A distillation loss", "losses", LOSSES),
    "method": Family("A pretraining method", "methods", METHODS, ", output_dim=8"),
    "step": Family("A compression step", "steps", STEPS),
    "teacher": Family("A kind of teacher", "teachers", TEACHERS),
    "protocol": Family("An evaluation protocol", "protocols", PROTOCOLS),
    "source": Family("A data source", "sources", SOURCES),
    "network": Family("A network", "networks"),
}


def write_package(family: str, name: str, into: Path) -> Path:
    """Write a package that adds one kind; return its folder.

    Raises:
        UserError: a name that cannot be, or is taken; a folder that exists.
    """
    _check_name(family, name)
    folder = into / name
    if folder.exists() or folder.is_symlink():
        raise UserError(f"new {family} {name}: {folder} exists; choose another name or --into")
    check_writable(folder / "pyproject.toml", "--into")
    texts = package_files(family, name)
    for path, text in texts.items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return folder


def package_files(family: str, name: str) -> dict[str, str]:
    """The text of every file of a package, by its path in it."""
    known = FAMILIES[family]
    kind = "" if known.registry is None else f" {name}"
    words = {
        "name": name,
        "class_name": class_name(name),
        "family": family,
        "summary": known.summary,
        "table": known.table,
        "listed": f"ssdistill list {known.table}{kind}",
        "makes": name.replace("_", ""),
        "arguments": known.arguments if known.registry else "",
    }
    templates = {
        "pyproject.toml": "pyproject.toml",
        "README.md": "README.md",
        "config.yaml": f"{family}.yaml",
        f"{name}/__init__.py": f"{family}.py",
        f"tests/test_{name}.py": "test.py",
    }
    return {path: Template(_template(file)).substitute(words) for path, file in templates.items()}


def class_name(name: str) -> str:
    """What its class is called: ``MyLoss`` of ``my_loss``."""
    return "".join(part.capitalize() for part in name.split("_"))


def _template(name: str) -> str:
    folder = resources.files("ssdistill.commands.new") / "templates"
    return (folder / f"{name}.txt").read_text(encoding="utf-8")


def _check_name(family: str, name: str) -> None:
    shown = f"new {family} {shortened(name)}"
    # pip takes no name that ends in _.
    if not re.fullmatch(r"[a-z]([a-z0-9_]*[a-z0-9])?", name) or len(name) > LONGEST:
        raise UserError(
            f"{shown}: no name of a package; use lower-case letters, digits and _, such as my_loss"
        )
    if keyword.iskeyword(name) or keyword.issoftkeyword(name):
        raise UserError(f"{shown}: a word of Python; choose another name")
    if not isinstance(yaml.safe_load(name), str):
        raise UserError(f"{shown}: no text in YAML; choose another name")
    if name in SKIPPED or name.startswith("test_"):
        raise UserError(f"{shown}: a name that tests have; choose another name")
    if whose := _whose(family, name):
        raise UserError(f"{shown}: {whose}; choose another name")


def _whose(family: str, name: str) -> str:
    """Who has the name already; empty if nobody has."""
    registry = FAMILIES[family].registry
    if registry is not None and name in registry.classes:
        return f"there is a {registry.noun} of this kind"
    if registry is None and (find_network(name) or timm.is_model(name)):
        return "there is a network of this name"
    if _is_installed(name):
        return "a package of this name is installed"
    if re.search(rf"\b{class_name(name)}\b", _template(f"{family}.py")):
        return f"its class would be called {class_name(name)}, as one that it uses"
    return ""


def _is_installed(name: str) -> bool:
    if name in sys.stdlib_module_names or importlib.util.find_spec(name) is not None:
        return True
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
