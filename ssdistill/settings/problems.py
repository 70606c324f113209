"""Describe all problems of a config at once, each with its key and the nearest known name."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_origin

from pydantic import BaseModel, ValidationError

from ssdistill.errors import UserError, nearest, shortened
from ssdistill.settings.places import hint, is_model, item_types, kind_of, members, names, tag
from ssdistill.settings.wording import (
    is_of_type,
    kinds_among,
    length_text,
    problem_text,
    received,
    what_is_expected,
)

KEY_FIRST = re.compile(r"([a-z_]\w*(?:\.[\w-]+)*): ")
"""What a problem begins with that a section finds with one of its settings."""


def describe(file: Path, error: ValidationError, model: type[BaseModel]) -> str:
    """One line per problem, under a line that names the file."""
    located = [
        (cast("Mapping[str, Any]", problem), *_locate(problem["loc"], model))
        for problem in error.errors()
    ]
    places = [tuple(keys) for _, keys, _, _ in located]
    of_value: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for problem, keys, _, _ in located:
        if is_of_type(problem):
            of_value.setdefault(tuple(keys), []).append(problem)
    lines = []
    for problem, keys, siblings, annotation in located:
        # A list whose one item is bad is also called too short, or no other member of a union.
        if any(place[: len(keys)] == tuple(keys) != place for place in places):
            continue
        alike = of_value[tuple(keys)] if is_of_type(problem) else [problem]
        key = shortened(".".join(keys), 200) or "the file"
        if problem["type"] == "extra_forbidden":
            nested = f"; nest the keys: {_nested(keys[-1])}" if "." in keys[-1] else ""
            remedy = nested or hint(keys[-1], siblings, model, ".".join(keys))
            lines.append(f"  {key}: no such setting{remedy}")
        elif problem["type"] in ("union_tag_invalid", "union_tag_not_found"):
            lines.append(f"  {key}.kind: {_unknown_kind(problem, annotation)}")
        else:
            lines.append(f"  {_what_is_wrong(alike, keys, annotation, model)}")
    unique = list(dict.fromkeys(lines))
    count = f"{len(unique)} problem{'s' * (len(unique) > 1)}"
    return f"{file}: {count}\n" + "\n".join(unique)


def _what_is_wrong(
    alike: Sequence[Mapping[str, Any]], keys: list[str], annotation: Any, model: type[BaseModel]
) -> str:
    """The line on a value, which several members of a union may find wrong.

    Args:
        alike: their problems with it.
    """
    problem = alike[0]
    key = shortened(".".join(keys), 200) or "the file"
    if problem["type"] == "missing":
        if not isinstance(problem["loc"][-1], int):
            return f"{key}: required"
        # An item of a list of fixed length; the input is the whole list.
        keys, _, annotation = _locate(problem["loc"][:-1], model)
        expected = length_text(annotation)
        return f"{'.'.join(keys)}: {expected}{received(alike, expected)}"
    if problem["type"] == "too_long" and (expected := length_text(annotation)):
        return f"{key}: {expected}{received(alike, expected)}"
    reason = what_is_expected(alike, annotation) or problem_text(problem, annotation)
    return f"{_place(key if keys else '', problem, reason, annotation)}{received(alike, reason)}"


def _place(key: str, problem: Mapping[str, Any], reason: str, annotation: Any) -> str:
    """``reason`` behind the key; what is wrong between settings begins with the key of one."""
    if problem["type"] != "value_error":
        return f"{key or 'the file'}: {reason}"
    named = KEY_FIRST.match(reason)
    known = {name for part in members(annotation) if is_model(part) for name in names(part)}
    written = problem["input"] if isinstance(problem["input"], dict) else {}
    is_key = named and (named[1] in written or named[1].partition(".")[0] in known)
    if key and is_key:
        return f"{key}.{reason}"
    return f"{key}: {reason}" if key else reason


def of_file(file: Path, tree: Any, model: type[BaseModel]) -> Any:
    """The settings that a config file and its overrides make.

    Raises:
        UserError: every problem, as :func:`describe` says it.
    """
    try:
        settings = model.model_validate(tree)
    except ValidationError as error:
        raise UserError(describe(file, error, model)) from error
    if problems := booleans_for_numbers(tree, settings):
        count = f"{len(problems)} problem{'s' * (len(problems) > 1)}"
        raise UserError("\n  ".join([f"{file}: {count}", *problems]))
    return settings


def validated(schema: type[BaseModel], values: Any, name: str) -> Any:
    """Settings outside of a config file.

    Raises:
        UserError: one line with every problem, each key below ``name`` unless that is empty.
    """
    try:
        settings = schema.model_validate(values)
    except ValidationError as error:
        problems = [line.strip() for line in describe(Path(name), error, schema).splitlines()[1:]]
        raise UserError(
            "; ".join(f"{name}.{problem}".lstrip(".") for problem in problems)
        ) from None
    if problems := booleans_for_numbers(values, settings):
        raise UserError("; ".join(f"{name}.{problem}".lstrip(".") for problem in problems))
    return settings


def _one_line(name: str, problems: list[str]) -> str:
    return "; ".join(f"{name}.{problem.strip()}".lstrip(".") for problem in problems)


def booleans_for_numbers(written: Any, settings: Any, key: str = "") -> list[str]:
    """One line for each number that was written as true or false, which Python takes for 1 or 0.

    Args:
        written: what ``settings`` were made from.
        key: of it.
    """
    if isinstance(written, bool):
        is_number = isinstance(settings, int | float) and not isinstance(settings, bool)
        return [f"{key}: expected a number (got {str(written).lower()})"] if is_number else []
    if isinstance(written, dict):
        return [
            line
            for name, value in _values(settings).items()
            if name in written
            for line in booleans_for_numbers(written[name], value, f"{key}.{name}".strip("."))
        ]
    if isinstance(written, list | tuple) and isinstance(settings, list | tuple):
        pairs = enumerate(zip(written, settings, strict=False))
        return [
            line
            for number, (item, value) in pairs
            for line in booleans_for_numbers(item, value, f"{key}.{number}")
        ]
    return []


def _values(settings: Any) -> dict[str, Any]:
    """Settings by the names they have in a file."""
    if isinstance(settings, dict):
        return settings
    if not isinstance(settings, BaseModel):
        return {}
    fields = type(settings).model_fields
    return {field.alias or name: getattr(settings, name) for name, field in fields.items()}


def _unknown_kind(problem: Mapping[str, Any], annotation: Any) -> str:
    context = problem.get("ctx", {})
    written = shortened(context.get("tag", ""))
    known = [name.strip(" '") for name in context.get("expected_tags", "").split(",") if name]
    known = known or kinds_among(members(annotation))
    reason = f"'{written}' is unknown{nearest(written, known)}" if written else "required"
    return f"{reason}; known: {', '.join(known)}"


def _nested(key: str) -> str:
    """Return a key with dots as a file has it: ``a: {b: …}``."""
    first, *others = shortened(key, 60).split(".")
    return f"{first}: " + "".join(f"{{{name}: " for name in others) + "…" + "}" * len(others)


def _locate(location: tuple, model: Any) -> tuple[list[str], list[str], Any]:
    """The key as written in YAML, the names that could stand in its place, and its type.

    pydantic's location also holds the names of union members, which no file contains.
    """
    keys: list[str] = []
    here, siblings, whole = model, [], model
    for part in location:
        if part == "[key]":
            continue
        types = members(here)
        models = [m for m in types if is_model(m)]
        fields = models[0] if models else None
        tagged = [m for m in models if part in (kind_of(m), tag(m))]
        # Of several models the location names one first, which may be called like a setting; a
        # model that is alone, or beside null, is not named: `experiment` is then a wrong key.
        alone = len([m for m in types if m is not type(None)]) == 1
        if tagged and not alone and (len(models) > 1 or part not in names(fields)):
            here = tagged[0]
            continue
        if fields is not None and (part in names(fields) or isinstance(part, str)):
            known = names(fields)
            siblings = list(known)
            keys.append(str(part))
            here = whole = known[part].annotation if part in known else Any
            continue
        inner = [arg for m in types for arg in item_types(m)]
        by_number = not any(get_origin(m) is dict for m in types)
        if inner and isinstance(part, str) and by_number:
            continue  # a member of a union, such as tuple[int, ...]
        if inner:
            keys.append(str(part))
            here, siblings = inner[0], []
            whole = here
    return keys, siblings, whole
