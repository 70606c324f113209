"""What a benchmark measured of one training: programs, number formats, rates."""

from dataclasses import dataclass, field

from ssdistill.measure.throughput import Spread, Values

WHOLE, ALONE, PARTS, LIGHTLY = "whole", "alone", "parts", "lightly"
"""Programs: the training as a stage runs it, its networks on ready views, its parts one after
another, and lightly's loop."""
RATE = "images_per_second"


@dataclass(frozen=True)
class Format:
    """A number format, a memory layout, and whether encoders are compiled."""

    precision: str
    memory_format: str
    compiled: bool = False

    def __str__(self) -> str:
        words = [self.precision, self.memory_format, *["compiled"] * self.compiled]
        return " ".join(words)


@dataclass
class Timing:
    """One training.

    Attributes:
        role: its row in the table of the experiment.
        what: method or losses, networks, batch, views.
        in_use: the format that a run would use.
        formats: all that are timed, fp32 first.
        step_seconds: shortest step of each format that was tried to choose one; empty if the
            config fixes the format.
        values: what was measured, by program and format.
        notices: what is not included.
    """

    role: str
    what: str = ""
    in_use: Format = Format("fp32", "contiguous")
    formats: list[Format] = field(default_factory=list)
    step_seconds: dict[str, float] = field(default_factory=dict)
    values: Values = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)

    def rates(self, program: str, number_format: Format | None = None) -> list[float]:
        """Return images per second of a program, by round."""
        return [round_[RATE] for round_ in self.values[key(program, number_format)]]

    def part_seconds(self, number_format: Format) -> dict[str, Spread]:
        """Return seconds per step of each part."""
        rounds = self.values[key(PARTS, number_format)]
        return {name: Spread.of([round_[name] for round_ in rounds]) for name in rounds[0]}

    def fraction_reached(self, number_format: Format) -> Spread:
        """Return the rate of the training over that of its networks alone."""
        whole, alone = (self.rates(program, number_format) for program in (WHOLE, ALONE))
        return Spread.of_ratios(whole, alone)

    def against_lightly(self, number_format: Format) -> Spread:
        """Return the rate of the training over that of lightly's loop."""
        return Spread.of_ratios(self.rates(WHOLE, number_format), self.rates(LIGHTLY))

    @property
    def chosen(self) -> Format:
        """The format in use, or the same with compiled encoders where that is faster."""
        alike = [f for f in self.formats if f.precision == self.in_use.precision]
        return max(alike, key=lambda f: Spread.of(self.rates(WHOLE, f)).median)


def key(program: str, number_format: Format | None) -> str:
    """Return the name of a program in a number format; None if it has only one."""
    return program if number_format is None else f"{program}, {number_format}"
