"""A parser of command lines whose errors are one line with a remedy."""

import argparse
import re
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from ssdistill.errors import nearest, shortened
from ssdistill.experiment.overrides import nearest_option
from ssdistill.terminal.console import complain

EXIT_USER_ERROR = 2
NUMBERS = {"int": "a whole number", "float": "a number"}
"""What a type of an option expects."""


class Parser(argparse.ArgumentParser):
    """argparse, which tells what is wrong without the whole usage, and what to write."""

    def error(self, message: str) -> NoReturn:
        """Print one line and leave with status 2."""
        text = self._explained(" ".join(message.split()))
        remedy = "" if ";" in text or "did you mean" in text else f"; see `{self.prog} --help`"
        complain(f"error: {text}{remedy}")
        self.exit(EXIT_USER_ERROR)

    def below(self, words: Iterable[str]) -> "Parser":
        """Return the parser of the command, or of its subcommand, that ``words`` begin with."""
        parser = self
        for word in words:
            if word in parser._commands():
                parser = parser._commands()[word]
        return parser

    def options(self, command: str | None = None) -> dict[str, bool]:
        """Options of a command and those of all, and whether they take a value."""
        own = self._commands()[command]._actions if command in self._commands() else []
        actions = [*self._actions, *own]
        return {name: a.nargs != 0 for a in actions for name in a.option_strings}

    def refuse(self, unknown: Sequence[str]) -> NoReturn:
        """Leave with an error on words that no argument takes; the first is named."""
        word = shortened(unknown[0])
        if not word.startswith("-"):
            more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
            self.error(f"'{word}'{more}: one word too many; see `{self.prog} --help`")
        hint = nearest_option(unknown[0], self.options())
        self.error(f"{word}: no such option of `{self.prog}`{hint}")

    def _commands(self) -> dict[str, "Parser"]:
        return next((a.choices for a in self._actions if isinstance(a.choices, dict)), {})

    def _explained(self, message: str) -> str:
        """argparse's message in the words of our errors."""
        if match := re.fullmatch("the following arguments are required: (.*)", message):
            return self._required(match[1].split(", "))
        if match := re.fullmatch(r"ambiguous option: (\S+) could match (.*)", message):
            return f"{match[1]}: begins several options ({match[2]}); write one in full"
        named = re.fullmatch("argument (.+?): (.*)", message)
        action = next((a for a in self._actions if named and _name(a) == named[1]), None)
        return _of_action(action, named[2]) if named and action else message

    def _required(self, names: list[str]) -> str:
        # argparse also names arguments that may be absent.
        action = next(a for a in self._actions if _name(a) == names[0])
        if isinstance(action.choices, dict):
            return f"{names[0]}: required; name one of {', '.join(action.choices)}"
        if action.option_strings:
            return f"{names[0]}: required; write {_usage(action)}"
        return f"{names[0]}: required ({action.help}); see `{self.prog} --help`"


def _of_action(action: argparse.Action, reason: str) -> str:
    """What is wrong with the value of one argument."""
    name = _name(action)
    if match := re.match(r"invalid choice: (.*) \(choose from", reason):
        value, known = shortened(match[1].strip("'\"")), list(action.choices or ())
        if isinstance(action.choices, dict):
            return f"{value}: no such {name}{nearest(value, known)}; known: {', '.join(known)}"
        return f"{name} {value}: unknown; use {' or '.join(known)}"
    if match := re.fullmatch(r"invalid (\w+) value: (.*)", reason):
        value = shortened(match[2].strip("'\""))
        return f"{name} {value}: expected {NUMBERS.get(match[1], match[1])}; write {_usage(action)}"
    if reason.startswith("expected "):
        values = reason.replace("arguments", "values").replace("argument", "value")
        return f"{name}: {values}; write {_usage(action)}"
    if reason.startswith("ignored explicit argument"):
        return f"{name}: takes no value; write {name} alone"
    return f"{name}: {reason}"


def _name(action: argparse.Action) -> str:
    """What argparse calls an argument in its messages."""
    if action.option_strings:
        return "/".join(action.option_strings)
    return str(action.metavar or action.dest)


def _usage(action: argparse.Action) -> str:
    """An option with what stands for its values in the help."""
    shown: Any = action.metavar or str(action.dest).upper()
    if action.choices:
        shown = " or ".join(map(str, action.choices))
    values = " ".join(shown) if isinstance(shown, tuple) else shown
    return f"{action.option_strings[0]} {values}" if action.option_strings else values
