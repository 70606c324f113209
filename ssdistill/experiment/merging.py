"""Merge one tree of config keys over another, as ``extends`` and overrides do."""

from collections.abc import Iterable, Iterator
from typing import Any

from ssdistill.errors import UserError, shortened
from ssdistill.experiment.sections import PretrainedTeacher, kind_alone
from ssdistill.experiment.sweep_values import RANGE_ENDS
from ssdistill.models.spec import EncoderSettings
from ssdistill.models.stems import has_small_stem
from ssdistill.settings.registry import (
    LOSSES,
    METHODS,
    PROTOCOLS,
    SOURCES,
    STEPS,
    TEACHERS,
    Registry,
)

KIND_SECTIONS: dict[str, Registry] = {
    "data": SOURCES,
    "teacher": TEACHERS,
    "teachers.*": TEACHERS,
    "pretrain": METHODS,
    "teacher.pretrain": METHODS,
    "teachers.*.pretrain": METHODS,
    "compare.*.pretrain": METHODS,
    "distill.losses.*": LOSSES,
    "compare.*.losses.*": LOSSES,
    "compress.*": STEPS,
    "plans.*.*": STEPS,
    "evaluate.also.*": PROTOCOLS,
}
"""Where a mapping has a ``kind``, and whose kinds; ``*`` is any name or number of an item."""
STEM_SETTINGS = ("stem", "stem_stride", "stem_padding")

Path = tuple[str, ...]
"""Keys from the top of the config down to a mapping."""


def merge(
    base: dict[str, Any], override: dict[str, Any], notices: list[str], path: Path = ()
) -> dict[str, Any]:
    """``base`` with the settings of ``override``, mapping by mapping; other values replace.

    - Another ``kind`` removes settings that it does not have, with a notice unless ``override``
      sets them itself; settings that both kinds have stay. So does another ``name`` of an encoder.
    - ``data: x`` is short for ``data: {kind: x}`` wherever kinds are chosen.
    - A mapping with item numbers changes single items of a list; a list replaces a list.

    Args:
        notices: a line is added for every setting that is ignored from here on.
        path: where in the config the two mappings are.

    Raises:
        UserError: an item number that a list does not have.
    """
    merged = dict(base)
    for key, reason in _removed_settings(base, override, path):
        del merged[key]
        if key not in override:
            notices.append(f"ignoring {'.'.join(path)}.{key}: {reason}")
    for key, value in override.items():
        merged[key] = _merge_value(merged.get(key), value, notices, (*path, str(key)))
    return merged


def _merge_value(old: Any, new: Any, notices: list[str], path: Path) -> Any:
    if not isinstance(new, dict):
        return new
    if isinstance(old, str) and _registry_at(path) is not None:
        old = kind_alone(old)
    if isinstance(old, dict):
        return merge(old, new, notices, path)
    if isinstance(old, list) and not _is_range(new, path):
        return _merge_items(old, new, notices, path)
    return new


def _is_range(value: dict[Any, Any], path: Path) -> bool:
    """Whether a mapping is a range of values in a sweep, which replaces a list of them."""
    return path[:2] == ("sweep", "parameters") and bool(RANGE_ENDS & value.keys())


def _merge_items(
    items: list[Any], override: dict[Any, Any], notices: list[str], path: Path
) -> list[Any]:
    """``compress.0.ratio=0.5`` changes one item of a list."""
    numbered = {str(number): item for number, item in enumerate(items)}
    for key in override:
        if str(key) not in numbered:
            extent = f"has items 0 to {len(items) - 1}" if items else "is an empty list"
            section = ".".join(path)
            raise UserError(f"{section}.{key}: {section} {extent}; write the whole list")
    changes = {str(key): value for key, value in override.items()}
    return list(merge(numbered, changes, notices, path).values())


def _removed_settings(
    base: dict[str, Any], override: dict[str, Any], path: Path
) -> Iterator[tuple[str, str]]:
    """Keys of ``base`` that mean nothing with the kind or network of ``override``, and why."""
    registry, kind = _registry_at(path), override.get("kind")
    if registry is not None and isinstance(kind, str) and kind != base.get("kind"):
        settings = _setting_names(registry, kind)
        if settings is not None:
            yield from _removed_by_kind(base, override, settings, path)
            return
    name = override.get("name")
    old_name = base.get("name", EncoderSettings().name)
    if path[-1:] == ("encoder",) and isinstance(name, str) and name != old_name:
        yield from _removed_by_network(base, old_name, name)


def _removed_by_kind(
    base: dict[str, Any], override: dict[str, Any], settings: Iterable[str], path: Path
) -> Iterator[tuple[str, str]]:
    """Settings that another kind does not have, or that were meant for the old one alone."""
    choice = f"{'.'.join(path)}.kind"
    for key in base:
        if key not in settings and key not in override:
            yield key, f"not a setting of {choice}={override['kind']}"
        elif key == "encoder" and _registry_at(path) is TEACHERS:
            # The network of one kind of teacher says nothing about that of another.
            yield key, f"it was set for another {choice} than {override['kind']}"


def _removed_by_network(
    base: dict[str, Any], old_name: Any, name: str
) -> Iterator[tuple[str, str]]:
    """Settings of an encoder that another network cannot take over."""
    if base.get("args"):
        yield "args", f"they are arguments of {old_name}"
    if base.get("stem", "auto") != "native" and not has_small_stem(name):
        for key in STEM_SETTINGS:
            if key in base:
                yield key, f"no small stem is known for {shortened(name)}"


def _setting_names(registry: Registry, kind: str) -> Iterable[str] | None:
    """Names of a kind's settings; None where there is no such kind."""
    if registry is TEACHERS and kind == PretrainedTeacher().kind:
        return PretrainedTeacher.model_fields
    return registry.schema(kind).model_fields if kind in registry.classes else None


def _registry_at(path: Path) -> Registry | None:
    """Whose kinds the mapping at this path holds; None where it has no ``kind``."""
    for pattern, registry in KIND_SECTIONS.items():
        keys = pattern.split(".")
        if len(keys) == len(path) and all(k in ("*", p) for k, p in zip(keys, path, strict=True)):
            return registry
    return None
