"""All problems of a config at once, each with its key and the nearest known name."""

import re
import types
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from ssdistill.errors import nearest, shortened


def describe(file: Path, error: ValidationError, model: type[BaseModel]) -> str:
    """One line per problem, under a line that names the file."""
    lines = []
    problems = error.errors()
    places = [problem["loc"] for problem in problems]
    for problem in problems:
        # A list whose one item is bad is also called too short.
        if any(place[: len(problem["loc"])] == problem["loc"] != place for place in places):
            continue
        keys, siblings = _locate(problem["loc"], model)
        key = shortened(".".join(keys), 200) or "the file"
        if problem["type"] == "extra_forbidden":
            lines.append(f"  {key}: no such setting{nearest(keys[-1], siblings)}")
        elif problem["type"] == "missing":
            lines.append(f"  {key}: must be given")
        elif problem["type"] in ("union_tag_invalid", "union_tag_not_found"):
            tag = shortened(problem["ctx"].get("tag", ""))
            known = [
                name.strip(" '") for name in problem["ctx"].get("expected_tags", "").split(",")
            ]
            reason = f"'{tag}' is unknown{nearest(tag, known)}" if tag else "must be given"
            lines.append(f"  {key}.kind: {reason}; known: {', '.join(known) or 'see list'}")
        else:
            message = shortened(problem["msg"].removeprefix("Value error, "), 1000)
            message = message.replace("valid tuple", "list, such as [a, b]")
            given = _given(problem["input"], problem["type"] == "string_type")
            lines.append(f"  {key}: {message[0].lower()}{message[1:]}{given}")
    unique = list(dict.fromkeys(lines))
    count = f"{len(unique)} problem{'s' * (len(unique) > 1)}"
    return f"{file}: {count}\n" + "\n".join(unique)


def _given(value: Any, text_asked: bool) -> str:
    if isinstance(value, dict):
        return ""
    remedy = ""
    if text_asked and isinstance(value, bool | int | float):
        remedy = "; text that YAML reads otherwise needs quotes, in a shell '\"…\"'"
    return f" (got {shortened(repr(value))}{remedy})"


def _locate(location: tuple, model: Any) -> tuple[list[str], list[str]]:
    """The key as written in YAML, and the names that could stand in its place.

    pydantic's location also holds the names of union members, which no file contains.
    """
    keys: list[str] = []
    here, siblings = model, []
    for part in location:
        if part == "[key]":
            continue
        members = _members(here)
        models = [m for m in members if _is_model(m)]
        fields = models[0] if models else None
        tagged = [m for m in models if part in (_kind(m), _tag(m))]
        # Of several models the location names one first, which may be called like a setting.
        if tagged and (len(models) > 1 or part not in _names(fields)):
            here = tagged[0]
            continue
        if fields is not None and (part in _names(fields) or isinstance(part, str)):
            names = _names(fields)
            siblings = list(names)
            keys.append(str(part))
            here = names[part].annotation if part in names else Any
            continue
        inner = [arg for m in members for arg in _item_types(m)]
        if inner:
            keys.append(str(part))
            here, siblings = inner[0], []
    return keys, siblings


def _members(annotation: Any) -> list[Any]:
    """The types a value may have, wrappers and unions taken apart."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _members(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [m for arg in get_args(annotation) for m in _members(arg)]
    return [annotation]


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _kind(model: type[BaseModel]) -> str | None:
    field = model.model_fields.get("kind")
    return field.default if field else None


def _tag(model: type[BaseModel]) -> str:
    """The label of a union without ``kind``: ``ordering`` for ``OrderingClaim``."""
    return re.sub("(Claim|Settings|Row)$", "", model.__name__).lower()


def _names(model: type[BaseModel] | None) -> dict[str, Any]:
    """Fields by the name they have in a file."""
    fields = model.model_fields if model else {}
    return {field.alias or name: field for name, field in fields.items()}


def _item_types(annotation: Any) -> list[Any]:
    """What a container holds: a mapping's values, a list's items."""
    args = get_args(annotation)
    if get_origin(annotation) is dict:
        return [args[1]]
    return [args[0]] if get_origin(annotation) in (tuple, list) and args else []
