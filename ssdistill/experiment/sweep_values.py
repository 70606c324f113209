"""Values that a parameter of a sweep may have: a list, or a range."""

import itertools
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ssdistill.errors import nearest, shortened

DIGITS = 4
"""Significant digits of random values: readable, and easily typed again."""
MOST_STEPS = 10_000
RANGE_ENDS = {"low", "high"}
"""Keys by which a mapping is a range."""
RANGE_KEYS = ("low", "high", "log", "int", "step")
OF_EVERY_POINT = {"sweep", "extends", "schema", "name", "seeds"}
"""Keys that are the same for all points."""


@dataclass(frozen=True)
class Choices:
    """A list of values, of any kind."""

    values: tuple[Any, ...]

    @property
    def by_label(self) -> dict[str | int | float | bool | None, Any]:
        """The values by what stands for them in a database: themselves, mappings as JSON."""
        plain = (str, int, float, bool, type(None))
        return {
            value if isinstance(value, plain) else json.dumps(value, sort_keys=True): value
            for value in self.values
        }

    def grid(self) -> tuple[Any, ...]:
        return self.values

    def draw(self, generator: random.Random) -> Any:
        return self.values[generator.randrange(len(self.values))]

    def ends(self) -> tuple[Any, ...]:
        """Values that show whether all of them are valid."""
        return self.values

    def plain(self) -> Any:
        """As a config has it."""
        return list(self.values)


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included.

    Attributes:
        log: whether orders of magnitude are equally likely.
        whole: whether they are integers (``int`` in a config).
        step: between neighboring values, from ``low`` on; None for none.
    """

    low: float
    high: float
    log: bool = False
    whole: bool = False
    step: float | None = None

    def grid(self) -> tuple[float, ...]:
        """The values that ``step`` makes."""
        assert self.step is not None
        count = math.floor((self.high - self.low) / self.step + 1e-9) + 1
        # Of 0.1 + 2 * 0.1 nobody wants the last digit.
        return tuple(self._number(self.low + k * self.step, 12) for k in range(count))

    def draw(self, generator: random.Random) -> float:
        if self.step is not None:
            values = self.grid()
            return values[generator.randrange(len(values))]
        if self.whole and not self.log:
            return generator.randint(int(self.low), int(self.high))
        if self.log:
            value = math.exp(generator.uniform(math.log(self.low), math.log(self.high)))
        else:
            value = generator.uniform(self.low, self.high)
        value = round(value) if self.whole else value
        low, high = self.ends()
        return min(max(self._number(value, DIGITS), low), high)

    def ends(self) -> tuple[float, float]:
        low, high = (int(n) if self.whole else n for n in (self.low, self.high))
        return low, high

    def plain(self) -> Any:
        content = {"low": self.low, "high": self.high}
        content |= {"log": True} if self.log else {}
        content |= {"int": True} if self.whole else {}
        return content | ({"step": self.step} if self.step is not None else {})

    def _number(self, value: float, digits: int) -> float:
        return int(value) if self.whole else float(f"{value:.{digits}g}")


def parse_parameters(written: Mapping[str, Any]) -> dict[str, Choices | Range]:
    """Parameters by dotted key; a mapping that is no range is a section of the config.

    Raises:
        ValueError: one line, with the key at fault.
    """
    parsed = {key: _parsed(key, value) for key, value in _flat(written, "")}
    if not parsed:
        raise ValueError("name at least one setting, with a list of values or {low: 1, high: 2}")
    for key in parsed:
        if key.split(".")[0] in OF_EVERY_POINT:
            raise ValueError(f"{key}: is the same for all points; remove it")
        below = [other for other in parsed if other.startswith(f"{key}.")]
        if below:
            raise ValueError(f"{below[0]}: {key} varies, too; remove one of them")
    return parsed


def _flat(written: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in written.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value and not RANGE_ENDS & value.keys():
            yield from _flat(value, f"{name}.")
        elif value is not None:  # null removes what an extended file varies
            yield name, value


def _parsed(key: str, value: Any) -> Choices | Range:
    if isinstance(value, Choices | Range):
        return value
    if isinstance(value, Mapping) and value:
        return _range(key, value)
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value):
        choices = Choices(tuple(value))
        if len(choices.by_label) < len(value):
            raise ValueError(f"{key}: a value is listed twice; list each value once")
        return choices
    shown = shortened(json.dumps(value, default=str))
    raise ValueError(f"{key}: expected a list of values, or {{low: 1, high: 2}} (got {shown})")


def _range(key: str, written: Mapping[str, Any]) -> Range:
    for name, value in written.items():
        if name not in RANGE_KEYS:
            hint = nearest(name, RANGE_KEYS)
            raise ValueError(f"{key}.{name}: no such setting of a range{hint}")
        wanted = bool if name in ("log", "int") else (int, float)
        if not isinstance(value, wanted) or (wanted is not bool and isinstance(value, bool)):
            kind = "true or false" if wanted is bool else "a number"
            raise ValueError(f"{key}.{name}: expected {kind} (got {shortened(repr(value))})")
    if missing := [name for name in ("low", "high") if name not in written]:
        raise ValueError(f"{key}.{missing[0]}: required")
    found = Range(
        written["low"],
        written["high"],
        written.get("log", False),
        written.get("int", False),
        written.get("step"),
    )
    if reason := _problem(found):
        raise ValueError(f"{key}: {reason}")
    return found


def _problem(found: Range) -> str:
    numbers = (found.low, found.high, found.step)
    if not all(math.isfinite(n) for n in numbers if n is not None):
        return "a range must be finite"
    if not found.low < found.high:
        return f"low={found.low:g} must be below high={found.high:g}"
    if found.log and found.low <= 0:
        return f"log requires low above 0 (got {found.low:g})"
    if found.step is not None:
        if found.log:
            return f"log=true and step={found.step:g} are both set; remove one of them"
        if not 0 < found.step <= found.high - found.low:
            return f"step={found.step:g} must be above 0 and at most high - low"
        if (found.high - found.low) / found.step > MOST_STEPS:
            return f"step={found.step:g} makes more than {MOST_STEPS} values; raise it"
    if found.whole and any(n != int(n) for n in numbers if n is not None):
        return "int requires whole numbers for low, high and step"
    return ""


def combinations(varied: Mapping[str, Choices | Range]) -> Iterator[dict[str, Any]]:
    """Every combination of values; the last parameter changes fastest."""
    keys = list(varied)
    for values in itertools.product(*(varied[key].grid() for key in keys)):
        yield dict(zip(keys, values, strict=True))


def drawn(varied: Mapping[str, Choices | Range], seed: int, number: int) -> dict[str, Any]:
    """The random point of this number; it does not depend on how many there are."""
    # One generator for each parameter, so that another parameter leaves the values of this one.
    return {
        key: values.draw(random.Random(f"{seed} {number} {key}")) for key, values in varied.items()
    }


def value_text(value: Any) -> str:
    """A value for a table or a message."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, float):
        return f"{value:.{DIGITS}g}"
    return value if isinstance(value, str) else json.dumps(value)
