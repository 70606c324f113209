"""Mutate a config: its tree or its text."""

import copy
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 3.5, -0.5, 1e30, 1e-30, float("inf"), float("nan"), 10**30,
    10**9, "", " ", "x", "x" * 300, "a/b", "..", "CON", "a\nb", "a: b", "~", "null", "1e400",
    "${name}", "${nope}", "${oc.env:NOPE}", "${", "é", "\u2028", "\x7f", [], {}, [[]], [None],
    ["x"], [-1], [[1, 2], [3]], {"kind": "x"}, {"kind": [1]}, {"kind": None}, {"": 1}, {"a": {}},
    {"kind": {"kind": "x"}}, "auto", "resnet18", "simclr", "digits", "2024-01-01", "0x10", "1_000",
)  # fmt: skip
ODD_TEXT = (
    "\t", "\0", "{", "[", "}", "]", "&a ", "*a", "!!python/object:os.system ", "!x ", "|", ">",
    "%", "@", "`", "'", '"', "? ", ": ", "- ", "#", "---\n", "...\n", "<<: *a\n", "\ufeff", "\r",
    "&a [*a]", "{a: 1, a: 2}", "!!binary aGk=", ".inf", "~", "\xa0", "\ud83d",
)  # fmt: skip

Mutation = tuple[str, int]
"""Name of a mutation and the seed of its choices."""


def mutate(text: str, mutations: list[Mutation]) -> bytes:
    """The text of a config after some mutations, one after the other."""
    content = text
    for name, seed in mutations:
        content = MUTATIONS[name](content, random.Random(seed))
    return content.encode("utf-8", "surrogatepass")


def draw(rng: random.Random) -> list[Mutation]:
    """One to three mutations."""
    names = list(MUTATIONS)
    weights = [4 if name in TREE else 1 for name in names]
    count = rng.choice((1, 1, 1, 2, 3))
    return [(rng.choices(names, weights)[0], rng.randrange(1 << 30)) for _ in range(count)]


def _paths(tree: Any, path: tuple = ()) -> Iterator[tuple]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from _paths(value, (*path, key))


def _parent(tree: Any, path: tuple) -> Any:
    for key in path[:-1]:
        tree = tree[key]
    return tree


def _on_tree(change: Callable[[Any, tuple, random.Random], None]) -> Callable:
    def apply(text: str, rng: random.Random) -> str:
        try:
            tree = yaml.safe_load(text)
            paths = list(_paths(tree)) if isinstance(tree, dict | list) else []
        except (yaml.YAMLError, ValueError, RecursionError):
            return text
        if not paths:
            return text
        path = rng.choice(paths)
        change(tree, path, rng)
        return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)

    return apply


def _set_odd(tree: Any, path: tuple, rng: random.Random) -> None:
    _parent(tree, path)[path[-1]] = copy.deepcopy(rng.choice(ODD_VALUES))


def _delete(tree: Any, path: tuple, rng: random.Random) -> None:
    del _parent(tree, path)[path[-1]]


def _rename(tree: Any, path: tuple, rng: random.Random) -> None:
    parent = _parent(tree, path)
    if isinstance(parent, dict):
        key = str(path[-1])
        position = rng.randrange(len(key) + 1)
        parent[key[:position] + rng.choice("axz_.9 ") + key[position + 1 :]] = parent.pop(path[-1])


def _swap(tree: Any, path: tuple, rng: random.Random) -> None:
    other = rng.choice(list(_paths(tree)))
    first, second = _parent(tree, path), _parent(tree, other)
    value = copy.deepcopy(second[other[-1]])
    second[other[-1]] = copy.deepcopy(first[path[-1]])
    if other[: len(path)] != path and path[: len(other)] != other:
        first[path[-1]] = value


def _wrap(tree: Any, path: tuple, rng: random.Random) -> None:
    parent = _parent(tree, path)
    value = parent[path[-1]]
    parent[path[-1]] = rng.choice(([value], {"kind": value}, {"a": value}, [value, value]))


def _scale(tree: Any, path: tuple, rng: random.Random) -> None:
    numbers = [p for p in _paths(tree) if type(_parent(tree, p)[p[-1]]) in (int, float)]
    if numbers:
        path = rng.choice(numbers)
        parent = _parent(tree, path)
        parent[path[-1]] *= rng.choice((0, -1, 2, 7, 1000, 10**9, 10**20, 0.5, 1e-9))


def _other_kind(tree: Any, path: tuple, rng: random.Random) -> None:
    from ssdistill.settings.registry import LOSSES, METHODS, PROTOCOLS, SOURCES, STEPS, TEACHERS

    kinds = [p for p in _paths(tree) if p[-1] == "kind"]
    if kinds:
        path = rng.choice(kinds)
        registry = rng.choice((LOSSES, METHODS, PROTOCOLS, SOURCES, STEPS, TEACHERS))
        _parent(tree, path)[path[-1]] = rng.choice(list(registry.classes))


def _add_setting(tree: Any, path: tuple, rng: random.Random) -> None:
    """A setting that a kind has, with a value that it may not take."""
    from ssdistill.settings.registry import LOSSES, METHODS, STEPS

    parent = _parent(tree, path)
    if isinstance(parent, dict):
        registry = rng.choice((LOSSES, METHODS, STEPS))
        known = registry.schema(rng.choice(list(registry.classes))).model_fields
        parent[rng.choice(list(known))] = copy.deepcopy(rng.choice(ODD_VALUES))


def _other_network(tree: Any, path: tuple, rng: random.Random) -> None:
    import timm

    names = [p for p in _paths(tree) if p[-2:] == ("encoder", "name")]
    if names:
        path = rng.choice(names)
        _parent(tree, path)[path[-1]] = rng.choice(timm.list_models())


def _insert(text: str, rng: random.Random) -> str:
    position = rng.randrange(len(text) + 1)
    return text[:position] + rng.choice(ODD_TEXT) + text[position:]


def _drop_line(text: str, rng: random.Random) -> str:
    lines = text.splitlines(keepends=True)
    if lines:
        del lines[rng.randrange(len(lines))]
    return "".join(lines)


def _double_line(text: str, rng: random.Random) -> str:
    lines = text.splitlines(keepends=True)
    if lines:
        number = rng.randrange(len(lines))
        lines.insert(rng.randrange(len(lines) + 1), lines[number])
    return "".join(lines)


def _truncate(text: str, rng: random.Random) -> str:
    return text[: rng.randrange(len(text) + 1)]


def _change_character(text: str, rng: random.Random) -> str:
    if not text:
        return text
    position = rng.randrange(len(text))
    return (
        text[:position]
        + chr(rng.choice((rng.randrange(128), rng.randrange(0xD7FF))))
        + text[position + 1 :]
    )


TREE = {
    "odd value": _on_tree(_set_odd),
    "delete": _on_tree(_delete),
    "rename": _on_tree(_rename),
    "swap": _on_tree(_swap),
    "wrap": _on_tree(_wrap),
    "scale": _on_tree(_scale),
    "other kind": _on_tree(_other_kind),
    "foreign setting": _on_tree(_add_setting),
    "other network": _on_tree(_other_network),
}
TEXT = {
    "insert": _insert,
    "drop line": _drop_line,
    "double line": _double_line,
    "truncate": _truncate,
    "change character": _change_character,
}
MUTATIONS: dict[str, Callable[[str, random.Random], str]] = {**TREE, **TEXT}


def configs(folder: Path) -> list[Path]:
    """Every config below a folder, in a fixed order."""
    return sorted(folder.rglob("*.yaml"))
