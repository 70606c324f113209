"""Word what pydantic finds wrong with a value as one who writes YAML would, without our classes."""

import re
from collections.abc import Mapping
from typing import Any, get_args, get_origin

from ssdistill.errors import shortened
from ssdistill.settings.places import is_model, kind_of, members

OF_MAPPING = (
    *("model_type", "model_attributes_type", "dataclass_type", "dataclass_exact_type"),
    *("dict_type", "mapping_type", "is_instance_of", "arguments_type"),
)
"""Types of the problem that a value is no mapping."""
FEWEST = re.compile(r"^(?:Tuple|List) should have at least (\d+ items?) after validation, not \d+$")
OF_TYPE = ("_type", "_parsing", "_parsing_size", "_from_float", "literal_error")
"""How the types of the problem end that a value is not of its type at all."""


def is_of_type(problem: Mapping[str, Any]) -> bool:
    """Return whether a value is of another type than its setting."""
    return problem["type"] in OF_MAPPING or problem["type"].endswith(OF_TYPE)


def what_is_wrong(problem: Mapping[str, Any], annotation: Any = Any) -> str:
    """Return what is wrong with a value, and what may stand in its place.

    Args:
        problem: one of ``ValidationError.errors()``.
        annotation: type of the setting; ``Any`` if it is not known.

    Returns:
        one line that begins in lower case, at most 1000 characters long.
    """
    types = members(annotation)
    null = ", or null" if type(None) in types and is_of_type(problem) else ""
    if problem["type"] in OF_MAPPING:
        return f"input should be {_mapping(types)}{null and f'{null} to leave it out'}"
    message = shortened(problem["msg"].removeprefix("Value error, "), 1000)
    message = message.replace("valid tuple", "list, such as [a, b]").partition(", unable to ")[0]
    message = FEWEST.sub(r"List at least \1", message)
    for ours, theirs in (("Tuple should", "List should"), ("Dictionary should", "Mapping should")):
        message = message.replace(ours, theirs)
    return f"{message[:1].lower()}{message[1:]}{null}"


def kinds_among(types: list[Any]) -> list[str]:
    """Return the kinds of the mappings that a value may be, in their order."""
    return [kind for model in types if is_model(model) and (kind := kind_of(model))]


def of_length(annotation: Any) -> str:
    """Return what a list of fixed length should be; empty where lengths are free."""
    types = members(annotation)
    null = ", or null" if type(None) in types else ""
    for part in types:
        items = get_args(part)
        if get_origin(part) is tuple and Ellipsis not in items:
            return f"input should be a list of {len(items)} values{null}"
    return ""


def as_yaml(value: Any) -> str:
    """Return a wrong value for a message: a mapping by that word, null and booleans as in YAML."""
    if isinstance(value, dict):
        return "a mapping"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return shortened(repr(value))


def _mapping(types: list[Any]) -> str:
    if any(get_origin(part) is dict for part in types):
        return "a mapping of names to values"
    models = [part for part in types if is_model(part)]
    kinds = kinds_among(models)
    if len(models) > 1 and len(kinds) == len(models):
        return f"a mapping with a kind, such as {{kind: {kinds[0]}}}"
    return "a mapping of settings" if models else "a mapping"
