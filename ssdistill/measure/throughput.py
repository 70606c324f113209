"""Rates of programs that take turns, so that other load on the machine affects all of them."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """A median, and the extremes around it.

    Attributes:
        n: number of values.
    """

    median: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Summarize values, one per round.

        Raises:
            ValueError: there are none.
        """
        if not values:
            raise ValueError("a spread requires at least one value")
        return cls(statistics.median(values), min(values), max(values), len(values))

    @classmethod
    def of_ratios(cls, upper: Sequence[float], lower: Sequence[float]) -> "Spread":
        """Summarize ``upper`` over ``lower``, taken within a round.

        Raises:
            ValueError: different numbers of rounds, or none.
        """
        return cls.of([a / b for a, b in zip(upper, lower, strict=True)])


Values = dict[str, list[dict[str, float]]]
"""What every turn measured, by program; one entry per round."""


def take_turns(
    turns: Mapping[str, Callable[[], Mapping[str, float]]],
    rounds: int,
    announce: Callable[[str, int], None] = lambda name, number: None,
) -> Values:
    """Run programs in the order A B C A B C …, after one round that is discarded.

    Args:
        turns: what a program does in its turn, by name; it returns what it measured, by name.
        rounds: turns of each that count, at least one.
        announce: called before every turn with the program and the number of the round, 0 for the
            one that is discarded.

    Raises:
        ValueError: fewer than one round.
    """
    if rounds < 1:
        raise ValueError(f"at least one round is required, got {rounds}")
    found: Values = {name: [] for name in turns}
    for number in range(rounds + 1):
        for name, turn in turns.items():
            announce(name, number)
            measured = dict(turn())
            if number:
                found[name].append(measured)
    return found
