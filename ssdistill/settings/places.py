"""Find where a key may stand in a config, from its schema."""

import re
import types
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from ssdistill.errors import closest, nearest
from ssdistill.settings import BEFORE_REBUILDING
from ssdistill.settings.registry import AnyOf

SLIP = 0.8
"""Likeness of a slip of the pen, which is likelier than a right name in a wrong place."""
MOST_PLACES = 3
"""Places of a key that a message names."""
MOST_KNOWN = 12
"""Settings of a section that a message names."""
REPEATED = ("teacher.pretrain.", "teachers.", "compare.", "plans.", "evaluate.also.")
"""Sections that repeat what another section may hold; they are named only for keys of their own."""


def hint(key: str, siblings: Iterable[str], model: type[BaseModel], at: str = "") -> str:
    """Suggest the intended key or section for an unknown key, as the end of a sentence.

    Args:
        key: the last part of the unknown key.
        siblings: the names that could stand in its place.
        model: of the whole config; for a key of another section, the hint names that section.
        at: the whole unknown key.
    """
    places, siblings = setting_places(model), list(siblings)
    if key in places:
        return f"{nearest(key, siblings, SLIP)}; {_belongs(key, places[key], at)}"
    if beside := nearest(key, siblings):
        return beside
    if name := closest(key, places, SLIP):
        return f"{nearest(key, [name])}; {_belongs(name, places[name], at)}"
    known = ", ".join(siblings[:MOST_KNOWN]) + ", …" * (len(siblings) > MOST_KNOWN)
    return f"; known: {known}" if known else ""


def _belongs(key: str, places: dict[str, tuple[str, ...]], at: str) -> str:
    kinds = places.get(at, ())
    others = {place: kinds for place, kinds in places.items() if place != at or not kinds}
    if key in others:
        return f"'{key}' belongs at the top of the config"
    named = [place + _of_kinds(kinds) for place, kinds in list(others.items())[:MOST_PLACES]]
    elsewhere = ", ".join(named) + ", …" * (len(others) > MOST_PLACES)
    if kinds:
        # The key stands where it belongs, in settings of another kind.
        more = f", or in {elsewhere}" if elsewhere else ""
        return f"'{key}' belongs to kind {_listed(kinds)}{more}"
    return f"'{key}' belongs in {elsewhere}"


def _listed(kinds: tuple[str, ...]) -> str:
    more = ", …" if len(kinds) > MOST_PLACES else ""
    return f"{', '.join(kinds[:MOST_PLACES])}{more}"


def _of_kinds(kinds: tuple[str, ...]) -> str:
    return f" (kind {_listed(kinds)})" if kinds else ""


@cache
def setting_places(model: type[BaseModel]) -> dict[str, dict[str, tuple[str, ...]]]:
    """Every key of a config by its name.

    Returns:
        name of a key -> dotted place -> the kinds that have it, or () where all have it. Names
        that a user chooses are ``NAME`` in a place, numbers of a list's items ``N``. The places
        least deep come first, in the order of the fields.
    """
    occurrences: dict[str, dict[str, list[tuple[str, ...]]]] = {}
    for path, kinds in _settings_below(model, (), ()):
        occurrences.setdefault(path[-1], {}).setdefault(".".join(path), []).append(kinds)
    return {
        name: {
            place: _kinds_of(occurrences[name][place])
            for place in sorted(
                _first_places(occurrences[name]), key=lambda place: place.count(".")
            )
        }
        for name in occurrences
    }


def _first_places(places: Iterable[str]) -> list[str]:
    """The places outside of sections that repeat others, or all where there are no such."""
    return [place for place in places if not place.startswith(REPEATED)] or list(places)


def _kinds_of(kinds_by_path: list[tuple[str, ...]]) -> tuple[str, ...]:
    """The kinds in ``kinds_by_path``; () where one of the places is that of every kind."""
    return (
        ()
        if () in kinds_by_path
        else tuple(dict.fromkeys(k for kinds in kinds_by_path for k in kinds))
    )


def _settings_below(
    annotation: Any, path: tuple[str, ...], kinds: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Path and kinds of every setting that a value of this type may hold."""
    parts = members(annotation)
    models = [part for part in parts if is_model(part)]
    everywhere = set.intersection(*(set(names(m)) for m in models)) if models else set()
    for part in models:
        for name, field in names(part).items():
            own = kinds if name in everywhere or not (kind := kind_of(part)) else (kind,)
            if name != "kind":
                yield (*path, name), own
                yield from _settings_below(field.annotation, (*path, name), own)
    for part in parts:
        placeholder = "NAME" if get_origin(part) is dict else "N"
        for item in item_types(part):
            yield from _settings_below(item, (*path, placeholder), kinds)


def members(annotation: Any) -> list[Any]:
    """The types a value may have, wrappers and unions taken apart."""
    if isinstance(annotation, type) and issubclass(annotation, AnyOf):
        return members(annotation.registry.any_of_now())
    origin = get_origin(annotation)
    if origin is Annotated:
        return members(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [m for arg in get_args(annotation) for m in members(arg)]
    return [annotation]


def is_model(annotation: Any) -> bool:
    """Whether a type is a mapping of known keys."""
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def kind_of(model: type[BaseModel]) -> str | None:
    """The ``kind`` by which a file chooses this model."""
    field = model.model_fields.get("kind")
    return field.default if field else None


def tag(model: type[BaseModel]) -> str:
    """The label of a union without ``kind``: ``ordering`` for ``OrderingClaim``."""
    return re.sub("(Claim|Settings|Row)$", "", model.__name__).lower()


def names(model: type[BaseModel] | None) -> dict[str, Any]:
    """Fields by the name they have in a file."""
    fields = model.model_fields if model else {}
    return {field.alias or name: field for name, field in fields.items()}


def item_types(annotation: Any) -> list[Any]:
    """What a container holds: a mapping's values, a list's items."""
    args = get_args(annotation)
    if get_origin(annotation) is dict:
        return [args[1]]
    return [args[0]] if get_origin(annotation) in (tuple, list) and args else []


BEFORE_REBUILDING.append(setting_places.cache_clear)
