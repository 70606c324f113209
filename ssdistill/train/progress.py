"""The progress bar of training."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from ssdistill.terminal.console import mute

NARROW = 60
"""Minimum width of a bar, in columns."""


class ProgressConsole(Console):
    """Standard error for progress, without markup in names; survives a closed pipe."""

    def __exit__(self, *error: object) -> None:
        """Write what was printed; a full disk under a log of progress ends no training run."""
        try:
            super().__exit__(*error)
        except OSError:
            self.on_broken_pipe()

    def on_broken_pipe(self) -> None:
        """Continue silently; ``2>&1 | head`` must not end a training run."""
        self.quiet = True
        mute(sys.stderr)

    @property
    def has_bars(self) -> bool:
        """Whether a bar can be drawn: on a wide enough terminal that can move its cursor."""
        return self.is_terminal and not self.is_dumb_terminal and self.width >= NARROW


console = ProgressConsole(
    stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False
)  # fmt: skip
"""The console for everything that is not a result."""


@dataclass(frozen=True)
class Progress:
    """How far a training is.

    Attributes:
        step, num_steps: steps done, and in all.
        rate: images a second since the training was started.
        loss: of the last step.
    """

    step: int
    num_steps: int
    rate: float
    loss: float


class TrainingProgress:
    """A bar with images per second, loss and time left; plain lines without a terminal.

    Args:
        title: what trains.
        start: steps already done.
        num_steps: steps in all.
        batch_size: images a step, for the rate.
        every_seconds: pause between two plain lines.
        shown: False prints nothing.

    Attributes:
        watchers: where the progress is shown elsewhere, what is called with it instead.
    """

    watchers: ClassVar[list[Callable[[Progress], object]]] = []

    def __init__(
        self,
        title: str,
        start: int,
        num_steps: int,
        batch_size: int,
        every_seconds: float = 15.0,
        shown: bool = True,
    ):
        self.title, self.start, self.num_steps = title, start, num_steps
        self.batch_size, self.every_seconds, self.shown = batch_size, every_seconds, shown
        self._bar = Bars(
            TextColumn("  {task.description}", markup=False),
            BarColumn(bar_width=28),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[rate]} img/s  loss {task.fields[loss]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not shown or not console.has_bars,
        )

    def __enter__(self) -> "TrainingProgress":
        self._began = self._spoke = time.monotonic()
        self._bar.start()
        self._line = self._bar.add_task(
            self.title, total=self.num_steps, completed=self.start, rate="     –", loss="–"
        )
        return self

    def show(self, step: int, loss: float) -> None:
        """Show that ``step`` steps are done and the last loss was ``loss``."""
        now = time.monotonic()
        rate = (step - self.start) * self.batch_size / max(now - self._began, 1e-9)
        for watcher in self.watchers:
            watcher(Progress(step, self.num_steps, rate, loss))
        self._bar.update(self._line, completed=step, rate=f"{rate:>6.0f}", loss=f"{loss:.3f}")
        silent = not self.shown or self.watchers or not self._bar.disable
        if not silent and now - self._spoke > self.every_seconds:
            seconds_left = (self.num_steps - step) * self.batch_size / max(rate, 1e-9)
            console.print(
                f"  {self.title}: {step}/{self.num_steps}, {rate:.0f} img/s, "
                f"loss {loss:.3f}, {seconds_left:.0f} s left"
            )
            self._spoke = now

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
