"""Output of `ssdistill list` and `--dry-run`."""

import inspect
import re
import textwrap
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from ssdistill.data.settings import StoreSettings
from ssdistill.distill.cache.rules import answer
from ssdistill.errors import UserError, nearest
from ssdistill.losses import Loss
from ssdistill.models.networks import NETWORKS
from ssdistill.settings import Settings
from ssdistill.settings.plugins import plugins
from ssdistill.settings.registry import (
    LOSSES,
    METHODS,
    PROTOCOLS,
    RUNTIMES,
    SOURCES,
    STEPS,
    TEACHERS,
    Registry,
)
from ssdistill.terminal.console import UNLIMITED
from ssdistill.terminal.fitted_table import FittedTable

if TYPE_CHECKING:
    from ssdistill.chain.run import PlannedStage

REGISTRIES = {
    "losses": LOSSES,
    "methods": METHODS,
    "teachers": TEACHERS,
    "steps": STEPS,
    "runtimes": RUNTIMES,
    "protocols": PROTOCOLS,
    "sources": SOURCES,
}


def listings(what: str | None = None) -> list[FittedTable]:
    """Return the requested tables, or all of them.

    Raises:
        UserError: for a word that names no table.
    """
    makers = {name: lambda name=name: _registry_tables(name) for name in REGISTRIES}
    makers |= {"networks": lambda: [_networks_table()]}
    makers |= {"views": lambda: [_views_table()], "configs": lambda: [_configs_table()]}
    if what is None:
        return [table for make in makers.values() for table in make()]
    if what not in makers:
        raise UserError(
            f"list: unknown table '{what}'{nearest(what, makers)}; known: {', '.join(makers)}"
        )
    return makers[what]()


def _registry_tables(name: str) -> list[FittedTable]:
    """One table, or one for each family where kinds have families."""
    classes = REGISTRIES[name].classes
    families = sorted({getattr(cls, "family", "") for cls in classes.values()})
    tables = []
    for family in families:
        members = {k: cls for k, cls in classes.items() if getattr(cls, "family", "") == family}
        tables.append(_kinds_table(f"{name}: {family}" if family else name, members, name))
    tables[-1].caption = f"ssdistill list {name} KIND shows one of them with its settings"
    return tables


def _kinds_table(title: str, known: dict[str, type], name: str) -> FittedTable:
    table = FittedTable(title=title)
    shared = ("reads", "views", "accumulates", "paper")
    columns = ["kind", *(c for c in shared if all(hasattr(cls, c) for cls in known.values()))]
    if all(issubclass(cls, Loss) for cls in known.values()):
        columns[-1:-1] = ["processes", "recorded"]
    packages = {kind: _package(name, kind) for kind in known}
    if any(packages.values()):
        columns.insert(1, "package")
    for column in [*columns, "what it does"]:
        table.add_column(column, no_wrap=column == "kind")
    for kind, cls in known.items():
        facts = {
            "kind": kind,
            "package": packages[kind] or "-",
            "views": _views(cls),
            "accumulates": _accumulates(cls),
        }
        if issubclass(cls, Loss):
            exact = "exact" if cls.exact_under_sharding else "exact with sync_batchnorm"
            facts |= {"recorded": answer(cls), "processes": exact}
        cells = [facts.get(column) or _text(getattr(cls, column, "")) for column in columns]
        table.add_row(*map(Text, [*cells, _summary(cls)]))
    return table


def _package(name: str, kind: str) -> str:
    """The plug-in that has added a kind, with its version; empty for ssdistill's own."""
    plugin = REGISTRIES[name].plugin_of(kind)
    return f"{plugin.package} {plugin.version or ''}".strip() if plugin else ""


def _summary(cls: type) -> str:
    return plain_text((inspect.getdoc(cls) or "").splitlines()[0])


def plain_text(documentation: str) -> str:
    """A docstring as a terminal shows it, without the marks of reStructuredText and Markdown."""
    text = re.sub(r"^ *```.*\n?", "", documentation, flags=re.M)
    # ~ shows the last part of a name, and "title <target>" the title.
    text = re.sub(r":[\w:+-]+:`~(?:[\w.]+\.)?(\w+)`", r"\1", text)
    text = re.sub(r":[\w:+-]+:`([^`<]+?)(?:\s*<[^`>]*>)?`", r"\1", text)
    return re.sub(r"(`{1,2})([^`]+)\1", r"\2", text)


_ENTRY = re.compile(r" *(- |\w+(, \w+)*: )")
"""The beginning of an entry of a list, or of an argument."""


def fitted(documentation: str, width: int) -> str:
    """Wrap again, at ``width`` columns, the paragraphs of a docstring that are wider.

    An entry of a list or of ``Args`` is a paragraph of its own, indented as it was written.
    Paragraphs that fit, YAML among them, stay as they are.
    """
    paragraphs: list[list[str]] = []
    for line in documentation.splitlines():
        if paragraphs and _continues(paragraphs[-1], line):
            paragraphs[-1].append(line)
        else:
            paragraphs.append([line])
    return "\n".join(_wrapped(lines, width) for lines in paragraphs)


def _continues(paragraph: list[str], line: str) -> bool:
    """Whether a line belongs to the paragraph above it."""
    if not line.strip() or not paragraph[0].strip() or re.fullmatch(r"[A-Z]\w+:", paragraph[0]):
        return False
    return not _ENTRY.match(line) or _indent(line) > _indent(paragraph[0])


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _wrapped(lines: list[str], width: int) -> str:
    """One paragraph: as it is if it fits, else wrapped with the indents that it has."""
    if max(map(len, lines)) <= width:
        return "\n".join(lines)
    first = _indent(lines[0])
    rest = _indent(lines[1]) if lines[1:] else first + (4 if _ENTRY.match(lines[0]) else 0)
    return textwrap.fill(
        " ".join(map(str.strip, lines)),
        width,
        initial_indent=" " * first,
        subsequent_indent=" " * rest,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _accumulates(cls: type) -> str:
    """Whether ``accumulate`` may cut its batches: its loss is a mean over images."""
    return "yes" if getattr(cls, "accumulates", False) else "no"


def _views(cls: type) -> str:
    """How many views, which of them are paired, and those made for it."""
    if not hasattr(cls, "pairing"):
        return ""
    extra = sorted({*cls.extra_student, *cls.extra_teacher})
    pairing = cls.pairing if isinstance(cls.pairing, str) else str([list(p) for p in cls.pairing])
    return f"{cls.views} {pairing}" + (f" + {', '.join(extra)}" if extra else "")


def description(what: str, kind: str, width: int = UNLIMITED) -> list[FittedTable | Text]:
    """One kind in full: its documentation and its settings.

    Args:
        width: columns to wrap the documentation at.

    Raises:
        UserError: for a word that names no registry, or a kind that it has not.
    """
    if what not in REGISTRIES:
        raise UserError(
            f"list: '{what}' has no kinds{nearest(what, REGISTRIES)}; use one of "
            f"{', '.join(REGISTRIES)}"
        )
    registry: Registry = REGISTRIES[what]
    cls = registry[kind]
    table = FittedTable("setting", "default")
    for line in _settings(registry, kind):
        table.add_row(*map(Text, line))
    facts = ", ".join(_text(getattr(cls, f)) for f in ("family", "paper") if hasattr(cls, f))
    if package := _package(what, kind):
        facts = f"{facts}; from {package}" if facts else f"from {package}"
    heading = f"{kind}: {facts}\n" if facts else f"{kind}\n"
    text = inspect.getdoc(cls) or ""
    if what == "sources":
        # The first line says what they are; their arguments follow those of the kind.
        shared = inspect.getdoc(StoreSettings) or ""
        text += "\n\nOf every source:\n" + shared.partition("Args:\n")[2]
    return [Text(heading), Text(fitted(plain_text(text), width)), table]


def _settings(registry: Registry, kind: str) -> list[tuple[str, str]]:
    """Name and default of every setting, the kind's own first."""
    fields = registry.schema(kind).model_fields
    own = [name for name in fields if name in _keywords(registry[kind])]
    shared = [name for name in fields if name not in own and name != "kind"]
    lines = []
    for name in own + shared:
        default = fields[name].default
        if name in own and isinstance(default, Settings):
            lines += [(f"{name}.{key}", _text(value)) for key, value in default]
            continue
        text = "required" if fields[name].is_required() else _text(default)
        # A group that all kinds share would fill the screen with its defaults.
        lines.append((name, text if len(text) < 60 else "…"))
    return lines


def _keywords(cls: type) -> list[str]:
    parameters = inspect.signature(cls.__init__).parameters.values()
    return [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]


def _text(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return str(value)


def _networks_table() -> FittedTable:
    """Networks of plug-ins; those of timm are a thousand more."""
    plugins()
    caption = "and every network of timm; see encoder.name"
    table = FittedTable("network", "package", "arguments", title="networks", caption=caption)
    for name, network in sorted(NETWORKS.items()):
        table.add_row(*map(Text, (name, network.package, ", ".join(network.arguments) or "-")))
    return table


def _views_table() -> FittedTable:
    from ssdistill.data.recipes import RECIPES

    table = FittedTable("recipe", "settings", title="views", show_lines=True)
    for name, recipe in RECIPES.items():
        changed = recipe.model_dump(exclude_defaults=True)
        settings = "  ".join(f"{key}={value}" for key, value in changed.items())
        table.add_row(name, Text(settings or "all defaults"))
    return table


def _configs_table() -> FittedTable:
    folder = Path(str(resources.files("ssdistill.configs")))
    table = FittedTable("config", "what it is", title="configs")
    for file in sorted(folder.rglob("*.yaml")):
        first = file.read_text().splitlines()[0]
        table.add_row(str(file.relative_to(folder).with_suffix("")), Text(first.lstrip("# ")))
    return table


def plan_table(planned: Iterable["PlannedStage"]) -> FittedTable:
    """The stages of a dry run."""
    table = FittedTable("stage", "role", "seed", "hash", "made from", "status", keys=3)
    for entry in planned:
        stage = entry.stage
        parents = ", ".join(
            f"{name} {p.digest[:8]}" if entry.known else name for name, p in stage.parents.items()
        )
        digest = stage.digest[:8] if entry.known else "unknown"
        row = (stage.kind, stage.role, str(stage.seed), digest, parents, entry.status)
        table.add_row(*map(Text, row))
    return table
