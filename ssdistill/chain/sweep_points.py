"""Points of a sweep, what became of them, and searches that know all points beforehand."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from ssdistill.errors import UserError, one_line, shortened
from ssdistill.experiment.reading import Written
from ssdistill.experiment.schema import Experiment
from ssdistill.experiment.sweep import SweepSettings, Watched
from ssdistill.experiment.sweep_values import combinations, drawn, value_text
from ssdistill.files import write_atomically

POINTS_FILE = "sweep.jsonl"
"""One line for each point that has ended."""
MOST_POINTS = 10_000
SHOWN = 10
"""Problems that a message names."""
Status = Literal["finished", "stopped", "failed"]


@dataclass(frozen=True)
class Point:
    """Values of the parameters.

    Attributes:
        number: from 0, in the order in which points are chosen.
        values: by dotted key.
        watched: the trial that its training reports to; None for none.
    """

    number: int
    values: dict[str, Any]
    watched: Watched | None = None

    def __str__(self) -> str:
        return ", ".join(f"{key}={value_text(value)}" for key, value in self.values.items())


@dataclass(frozen=True)
class Outcome:
    """What became of a point; a line of ``sweep.jsonl``.

    Attributes:
        point, values: its number and values.
        status: ``stopped`` is stopped early, ``failed`` ended by an error.
        value: the metric that chooses, mean over seeds; None unless finished.
        by_seed: the metric of each seed.
        reason: why it was stopped or has failed.
        report: folder of its report, in the runs folder.
        model: folder of the first seed's model, likewise.
    """

    point: int
    values: dict[str, Any]
    status: Status
    value: float | None = None
    by_seed: dict[str, float] = field(default_factory=dict)
    reason: str = ""
    report: str = ""
    model: str = ""

    def as_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Outcome":
        """Undo :meth:`as_json`.

        Raises:
            ValueError: it is not what that wrote.
        """
        content = json.loads(text)
        try:
            outcome = cls(**content)
            valued = isinstance(outcome.value, int | float) and not isinstance(outcome.value, bool)
            whole = isinstance(outcome.point, int) and outcome.status in get_args(Status)
            whole = whole and isinstance(outcome.values, dict) and isinstance(outcome.by_seed, dict)
            if not whole or valued != (outcome.status == "finished"):
                raise ValueError("not the outcome of a point")
        except TypeError as error:
            raise ValueError(str(error)) from None
        return outcome


class Search(Protocol):
    """Chooses points; several may be chosen before the first of them has ended."""

    total: int

    def ask(self, count: int) -> list[Point]:
        """The next points, at most ``count``; none where there are no more."""
        ...

    def tell(self, point: Point, outcome: Outcome) -> None:
        """What became of a point."""
        ...

    def ended(self) -> list[Outcome]:
        """What it knows of points that have ended, also in earlier runs."""
        ...


class ListSearch:
    """Points that are known beforehand, in order.

    Args:
        values: of every point.
        outcomes: of those that have ended, by number.
    """

    def __init__(self, values: Sequence[dict[str, Any]], outcomes: dict[int, Outcome]):
        self.values, self.total = values, len(values)
        self._waiting = iter([n for n in range(len(values)) if n not in outcomes])

    def ask(self, count: int) -> list[Point]:
        numbers = itertools.islice(self._waiting, count)
        return [Point(number, self.values[number]) for number in numbers]

    def tell(self, point: Point, outcome: Outcome) -> None:
        """Nothing depends on it."""

    def ended(self) -> list[Outcome]:
        return []


def listed_points(settings: SweepSettings) -> list[dict[str, Any]] | None:
    """Every point of a grid or of a random search; None where points follow from others.

    Raises:
        UserError: a grid of too many points.
    """
    if settings.search == "grid":
        points = list(itertools.islice(combinations(settings.varied), MOST_POINTS + 1))
        if len(points) > MOST_POINTS:
            raise UserError(
                f"sweep.parameters: more than {MOST_POINTS} combinations; shorten the lists, or "
                "set sweep.search=random"
            )
        return points
    if settings.search == "random":
        count = settings.points or 0
        return [drawn(settings.varied, settings.seed, number) for number in range(count)]
    return None


def validated_points(
    written: Written, settings: SweepSettings, points: Sequence[dict[str, Any]] | None
) -> list[Experiment]:
    """The experiment at every point; of those not known yet, at the ends of every parameter.

    Raises:
        UserError: every problem once, with the parameter at fault.
    """
    if points is None:
        ends = {key: values.ends() for key, values in settings.varied.items()}
        first = {key: values[0] for key, values in ends.items()}
        points = [first, *({**first, key: v} for key, values in ends.items() for v in values[1:])]
    experiments, problems = [], []
    for values in points:
        try:
            experiments.append(written.at(values))
        except UserError as error:
            lines = str(error).splitlines()
            found = [line.strip() for line in lines[1:]] or [str(error)]
            problems += [_at_point(problem, values) for problem in found]
    if unique := list(dict.fromkeys(problems)):
        count = f"{len(unique)} problem{'s' * (len(unique) > 1)}"
        more = [f"and {len(unique) - SHOWN} more"] if len(unique) > SHOWN else []
        raise UserError("\n  ".join([f"{written.file}: {count}", *unique[:SHOWN], *more]))
    return experiments


def _at_point(problem: str, values: dict[str, Any]) -> str:
    """A problem under the parameter that causes it, or with the values that cause it together."""
    if any(problem.startswith(f"{key}{end}") for key in values for end in (":", ".")):
        return f"sweep.parameters.{problem}"
    section, found, reason = problem.partition(": no such setting")
    if found and (below := [key for key in values if key.startswith(f"{section}.")]):
        return f"sweep.parameters.{below[0]}{found}{reason}"
    return f"sweep.parameters: {problem} (at {shortened(Point(0, values), 200)})"


def read_outcomes(folder: Path) -> dict[int, Outcome]:
    """What ``sweep.jsonl`` of a sweep's folder says, by number of the point.

    Raises:
        UserError: lines that this program did not write.
    """
    path = folder / POINTS_FILE
    if not path.exists():
        return {}
    try:
        outcomes = [Outcome.from_json(line) for line in path.read_text("utf-8").splitlines()]
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: damaged ({one_line(error)}); remove it and run the same command again: "
            "stages of its points are reused"
        ) from error
    return {outcome.point: outcome for outcome in outcomes}


def write_outcomes(folder: Path, outcomes: dict[int, Outcome]) -> None:
    """Write ``sweep.jsonl``, in the order of the points."""
    lines = [outcomes[number].as_json() + "\n" for number in sorted(outcomes)]
    write_atomically(folder / POINTS_FILE, "".join(lines))
