"""``${oc.env:NAME}``, ``${oc.env:NAME,default}`` and ``${key.sub}`` inside the text of a config.

By hand: OmegaConf, whose notation it is, tells errors in several lines, puts whole sections in,
lets texts that repeat each other grow without bound, and requires one old version of antlr4.
"""

import os
import re
from typing import Any

from ssdistill.errors import UserError, nearest
from ssdistill.experiment.yaml_text import text_problem

REFERENCE = re.compile(r"\$\{([^${}]*)\}")
LONGEST = 10_000
"""Characters of a text once everything in it is replaced."""


def resolve(tree: dict[str, Any]) -> dict[str, Any]:
    """``tree`` with every reference replaced; a text that is one reference becomes its value.

    Raises:
        UserError: a variable that is not set, a key that does not exist or is no single value,
            references in a circle.
    """
    return _Resolver(tree).below(tree, ())


class _Resolver:
    def __init__(self, tree: dict[str, Any]):
        self.tree = tree
        self.values: dict[tuple[str, ...], Any] = {}
        self.open: list[tuple[str, ...]] = []

    def below(self, value: Any, path: tuple[str, ...]) -> Any:
        if isinstance(value, dict):
            return {key: self.below(item, (*path, str(key))) for key, item in value.items()}
        if isinstance(value, list):
            return [self.below(item, (*path, str(n))) for n, item in enumerate(value)]
        return self.text(value, path) if isinstance(value, str) and "${" in value else value

    def text(self, text: str, path: tuple[str, ...]) -> Any:
        if path in self.values:
            return self.values[path]
        key = ".".join(path)
        if path in self.open:
            circle = " -> ".join(".".join(p) for p in (*self.open[self.open.index(path) :], path))
            raise UserError(f"{key}: circular references ({circle}); replace one by a value")
        if len(self.open) > 100:
            raise UserError(f"{key}: references nested more than 100 deep; replace one by a value")
        self.open.append(path)
        only_reference = REFERENCE.fullmatch(text)
        if only_reference:
            value = self.reference(only_reference[1], key)
        else:
            value = REFERENCE.sub(lambda match: str(self.reference(match[1], key)), text)
        self.open.pop()
        if isinstance(value, str) and "${" in value:
            raise UserError(f"{key}: '{value[:60]}' is not a reference; write ${{key}} or "
                            "${oc.env:NAME}")  # fmt: skip
        if isinstance(value, str) and len(value) > LONGEST:
            raise UserError(
                f"{key}: longer than {LONGEST} characters once references are replaced; shorten it"
            )
        self.values[path] = value
        return value

    def reference(self, text: str, key: str) -> Any:
        """What stands for the text between ``${`` and ``}`` in the setting ``key``."""
        resolver, colon, argument = text.partition(":")
        if not colon:
            return self.other(text.strip(), key)
        if resolver.strip() != "oc.env":
            raise UserError(f"{key}: ${{{text}}} is unknown; write ${{key}} or ${{oc.env:NAME}}")
        name, comma, default = (part.strip() for part in argument.partition(","))
        # The system takes neither for a variable's name.
        value = os.environ.get(name) if name and not text_problem(name) else None
        if value is None and not comma:
            raise UserError(
                f"{key}: the environment variable {name or '(no name)'} is not set; set it, or "
                f"write ${{oc.env:{name},default}}"
            )
        value = default if value is None else value
        if reason := text_problem(value):
            raise UserError(
                f"{key}: the environment variable {name} {reason}; set it to other text"
            )
        return value

    def other(self, name: str, key: str) -> Any:
        path, value = tuple(name.split(".")), self.tree
        for part in path:
            items = dict(enumerate(value)) if isinstance(value, list) else value
            items = {str(k): v for k, v in items.items()} if isinstance(items, dict) else {}
            if part not in items:
                raise UserError(
                    f"{key}: ${{{name}}} refers to an unknown key{nearest(part, items)}; "
                    "correct the name"
                )
            value = items[part]
        if isinstance(value, dict | list):
            raise UserError(f"{key}: ${{{name}}} refers to a section; refer to a single value")
        return self.text(value, path) if isinstance(value, str) and "${" in value else value
