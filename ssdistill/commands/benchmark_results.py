"""Results of `ssdistill benchmark` as a table, as lines below it, and for a JSON file."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from ssdistill.measure.throughput import Spread
from ssdistill.measure.timing import ALONE, LIGHTLY, WHOLE, Format, Timing
from ssdistill.record.provenance import describe_hardware, describe_versions, provenance
from ssdistill.report.tables.table import Table

NONE, SAME = "–", "same as fp32"


def table(timings: list[Timing], steps: int) -> Table:
    """Return the results of all trainings, in fp32 and as chosen, in 80 columns."""
    rows = [row for timing in timings for row in _rows(timing)]
    rounds = len(next(iter(timings[0].values.values())))
    facts = provenance()
    caption = (
        f"images/s unless stated otherwise; median of {rounds} rounds of {steps} steps "
        f"(lowest to highest); {describe_hardware(facts)}; {describe_versions(facts)}"
    )
    header = ("training", "what", "fp32", "chosen")
    return Table(header, tuple(rows), caption, "", (False, False, True, True), keys=2)


def _rows(timing: Timing) -> list[tuple[str, ...]]:
    plain = next((f for f in timing.formats if f.precision == "fp32" and not f.compiled), None)
    chosen = timing.chosen

    def row(what: str, cell: Callable[[Format], str], same: str = NONE) -> tuple[str, ...]:
        first = NONE if plain is None else cell(plain)
        return (timing.role, what, first, same if chosen == plain else cell(chosen))

    def rates(program: str) -> Callable[[Format], str]:
        return lambda f: _cell(Spread.of(timing.rates(program, f)), 0)

    rows = [
        row("number format", lambda f: str(f).removeprefix("fp32 "), SAME),
        row("training", rates(WHOLE)),
        row("networks alone", rates(ALONE)),
        row("fraction reached", lambda f: _cell(timing.fraction_reached(f), 2)),
    ]
    for name in timing.part_seconds(chosen):
        rows.append(
            row(f"{name} (ms)", lambda f, n=name: _cell(timing.part_seconds(f)[n], 1, 1000))
        )
    if LIGHTLY in timing.values:
        loop = _cell(Spread.of(timing.rates(LIGHTLY)), 0)
        rows.append((timing.role, "lightly's loop", loop, NONE))
        rows.append(row("training / lightly", lambda f: _cell(timing.against_lightly(f), 2)))
    return rows


def _cell(spread: Spread, digits: int, factor: float = 1) -> str:
    values = (factor * value for value in (spread.median, spread.low, spread.high))
    middle, low, high = (f"{value:.{digits}f}" for value in values)
    return f"{middle} ({low} to {high})"


def lines_of(timing: Timing) -> list[str]:
    """Say what was trained, and how the number format was chosen."""
    lines = [timing.what]
    if timing.step_seconds:
        tried = ", ".join(f"{name} {1000 * s:.1f}" for name, s in timing.step_seconds.items())
        lines.append(f"shortest step in ms: {tried}")
    else:
        lines.append("number format and layout are those of the config")
    if not any(number_format.compiled for number_format in timing.formats):
        lines.append("not compiled; --compile times that, too")
    elif not timing.chosen.compiled:
        lines.append("compiled, it is no faster")
    return [f"{timing.role}: {line}" for line in [*lines, *timing.notices]]


def results(timings: list[Timing]) -> dict[str, Any]:
    """Return everything that was measured, ready for JSON; rates are images per second."""
    return {
        "trainings": {timing.role: _training(timing) for timing in timings},
        "provenance": provenance(),
    }


def _training(timing: Timing) -> dict[str, Any]:
    content: dict[str, Any] = {
        "what": timing.what,
        "chosen": str(timing.chosen),
        "step_seconds": timing.step_seconds,
        "formats": {str(f): _format(timing, f) for f in timing.formats},
        "notices": timing.notices,
    }
    if LIGHTLY in timing.values:
        content["lightly"] = asdict(Spread.of(timing.rates(LIGHTLY)))
    return content


def _format(timing: Timing, number_format: Format) -> dict[str, Any]:
    seconds = timing.part_seconds(number_format)
    content: dict[str, Any] = {
        "training": asdict(Spread.of(timing.rates(WHOLE, number_format))),
        "networks_alone": asdict(Spread.of(timing.rates(ALONE, number_format))),
        "fraction": asdict(timing.fraction_reached(number_format)),
        "seconds": {name: asdict(spread) for name, spread in seconds.items()},
    }
    if LIGHTLY in timing.values:
        content["against_lightly"] = asdict(timing.against_lightly(number_format))
    return content
