"""Word what pydantic finds wrong with a value as one who writes YAML would, without our classes."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_origin

from ssdistill.errors import closest, shortened
from ssdistill.settings.places import is_model, kind_of, members

OF_MAPPING = (
    *("model_type", "model_attributes_type", "dataclass_type", "dataclass_exact_type"),
    *("dict_type", "mapping_type", "is_instance_of", "arguments_type"),
)
"""Types of the problem that a value is no mapping."""
OF_TYPE = ("_type", "_parsing", "_parsing_size", "_from_float", "literal_error", "none_required")
"""How the types of the problem end that a value is not of its type at all."""
LIST = "a list, such as [a, b]"
EXPECTED = {
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "a whole number"),
    "int_parsing_size": "a whole number of fewer digits",
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    "finite_number": "a finite number",
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    **dict.fromkeys(("string_type", "string_sub_type", "string_unicode"), "text"),
    **dict.fromkeys(("tuple_type", "list_type", "set_type", "iterable_type"), LIST),
    "none_required": "null",
    "literal_error": "{expected}",
    "greater_than": "a number above {gt:g}",
    "greater_than_equal": "a number of at least {ge:g}",
    "less_than": "a number below {lt:g}",
    "less_than_equal": "a number of at most {le:g}",
    "string_too_short": "text of at least {min_length} characters",
    "string_too_long": "text of at most {max_length} characters",
    "invalid_key": "text as key",
}
"""What is expected in place of a value with a problem, by the problem's type."""
FORMS = {
    r"^[A-Za-z0-9][A-Za-z0-9_.-]*$": "letters, digits, '_', '.' and '-', first a letter or digit",
    r"^[A-Za-z0-9][A-Za-z0-9_-]*$": "letters, digits, '_' and '-', first a letter or digit",
    r"^[A-Za-z0-9_]+$": "letters, digits and '_'",
    r"^[A-Za-z0-9_.-]{1,128}$": "at most 128 letters, digits, '_', '.' and '-'",
    r"^[A-Za-z_][A-Za-z0-9_]{0,63}$": "the name of a package: letters, digits and '_'",
    r"^(cls|txt|json(\.[^.]+)*)$": "cls, txt, json, or a key of json such as json.label",
    "^[0-9a-f]{64}$": "a hash of 64 hexadecimal digits",
    "^[0-9a-f]{8,64}$": "a hash of 8 to 64 hexadecimal digits",
}
"""What the patterns of settings and files mean."""


def is_of_type(problem: Mapping[str, Any]) -> bool:
    """Return whether a value is of another type than its setting."""
    return problem["type"] in OF_MAPPING or problem["type"].endswith(OF_TYPE)


def problem_text(problem: Mapping[str, Any], annotation: Any = Any) -> str:
    """Return what is wrong with a value, and what may stand in its place.

    Args:
        problem: one of ``ValidationError.errors()``.
        annotation: type of the setting; ``Any`` if it is not known.

    Returns:
        one line that begins in lower case, at most 1000 characters long.
    """
    return what_is_expected([problem], annotation) or _in_its_own_words(problem)


def what_is_expected(problems: Sequence[Mapping[str, Any]], annotation: Any) -> str:
    """Return ``expected …`` for the problems that the members of a union find with one value.

    Empty if one of them is of another sort, such as those that a setting of ours words itself.
    """
    types = members(annotation)
    expected = [_expected(problem, types) for problem in problems]
    if not all(expected):
        return ""
    null = type(None) in types
    if null and all(problem["type"] in OF_MAPPING for problem in problems):
        expected.append("null to leave it out")
    elif null:
        expected.append("null")
    return f"expected {', or '.join(dict.fromkeys(expected))}"


def received(problems: Sequence[Mapping[str, Any]], reason: str) -> str:
    """Return `` (got …)`` for a wrong value, with a remedy; empty if ``reason`` shows the value.

    Args:
        problems: with that value.
        reason: what is said of it.
    """
    value, types = problems[0]["input"], {problem["type"] for problem in problems}
    if isinstance(value, dict) and not is_of_type(problems[0]):
        return ""  # the mapping is right, and what is wrong in it has been said
    if "value_error" in types and isinstance(value, str) and as_yaml(value) in reason:
        return ""
    remedy = ""
    if isinstance(value, bool | int | float) and "string_type" in types:
        remedy = "; text that YAML reads otherwise needs quotes, in a shell '\"…\"'"
    elif meant := next(filter(None, map(_intended, problems)), ""):
        remedy = f"; did you mean '{meant}'?"
    return f" (got {as_yaml(value)}{remedy})"


def said_of(problem: Mapping[str, Any]) -> str:
    """Return what is wrong with a value whose type is not known, and the value."""
    reason = problem_text(problem)
    # What is wrong with a value that is absent is that it is absent.
    return reason if problem["type"] == "missing" else f"{reason}{received([problem], reason)}"


def _intended(problem: Mapping[str, Any]) -> str:
    """The likeliest of the words that a setting may have; empty if none is like it."""
    known = re.findall("'([^']*)'", problem.get("ctx", {}).get("expected", ""))
    return closest(problem["input"], known) if isinstance(problem["input"], str) else ""


def _expected(problem: Mapping[str, Any], types: list[Any]) -> str:
    """What may stand in place of a value; empty if the problem says so itself."""
    context = problem.get("ctx", {})
    if problem["type"] in OF_MAPPING:
        return _mapping(types)
    if problem["type"] == "string_pattern_mismatch":
        return FORMS.get(context["pattern"], f"text like {context['pattern']}")
    if problem["type"] in ("too_short", "too_long"):
        named = "mapping" if context["field_type"] == "Dictionary" else "list"
        fewest, most = context.get("min_length"), context.get("max_length")
        number, bound = (most, "at most") if fewest is None else (fewest, "at least")
        return f"a {named} of {bound} {number} item{'s' * (number != 1)}"
    return EXPECTED.get(problem["type"], "").format(**context)


def _in_its_own_words(problem: Mapping[str, Any]) -> str:
    if problem["type"] == "missing":
        return "required"
    if problem["type"] == "extra_forbidden":
        return "no such setting"
    message = shortened(problem["msg"].removeprefix("Value error, "), 1000)
    return f"{message[:1].lower()}{message[1:]}"


def kinds_among(types: list[Any]) -> list[str]:
    """Return the kinds of the mappings that a value may be, in their order."""
    return [kind for model in types if is_model(model) and (kind := kind_of(model))]


def length_text(annotation: Any) -> str:
    """Return what a list of fixed length should be; empty where lengths are free."""
    types = members(annotation)
    null = ", or null" if type(None) in types else ""
    for part in types:
        items = get_args(part)
        if get_origin(part) is tuple and Ellipsis not in items:
            return f"expected a list of {len(items)} values{null}"
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
