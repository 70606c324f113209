"""Show all running stages in one place: a line each on a terminal, plain lines elsewhere."""

import time
from collections.abc import Iterable
from typing import Any

from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Column

from ssdistill.chain.executors import Job, Key
from ssdistill.chain.executors.bulletin import LINE, PROGRESS, STARTED, Message
from ssdistill.train.progress import Progress, console

EVERY_SECONDS = 15.0
"""Pause between two plain lines on one stage."""


class LiveView:
    """What is shown of stages that run side by side.

    Args:
        jobs: the stages that are not finished.
    """

    def __init__(self, jobs: Iterable[Job]):
        self._labels = {job.key: job.label for job in jobs}
        self._spoke: dict[Key, float] = {}
        self._hosts: dict[Key, str] = {}
        self._rows: dict[Key, Any] = {}
        self._ended: set[Key] = set()
        self._bars = Bars(
            TextColumn(
                "  {task.description}",
                markup=False,
                table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1),
            ),
            BarColumn(bar_width=16),
            TextColumn("{task.fields[said]}", markup=False),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            expand=True,
            disable=not console.has_bars,
        )

    def __enter__(self) -> "LiveView":
        self._bars.start()
        self._whole = self._bars.add_task("stages", total=len(self._labels), said="")
        self._count()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    @property
    def running(self) -> int:
        """How many stages run."""
        return len(self._hosts.keys() - self._ended)

    def show(self, messages: Iterable[Message]) -> None:
        """Show what stages have said; what comes after their end is of no interest."""
        for key, word, said in messages:
            if word == LINE and key in self._labels:
                number, _, _ = self._labels[key].partition(" ")
                console.print(f"  {number} {said}", style="dim")
            elif key in self._labels and key not in self._ended:
                if word == STARTED:
                    self._start(key, said)
                elif word == PROGRESS:
                    self._progress(key, said)

    def end(self, key: Key, line: str, style: str = "dim") -> None:
        """Say how a stage ended."""
        self._ended.add(key)
        if (row := self._rows.pop(key, None)) is not None:
            self._bars.remove_task(row)
        console.print(f"{self._labels[key]}: {line}", style=style)
        self._count()

    def _start(self, key: Key, host: str) -> None:
        again, self._hosts[key] = key in self._hosts, host
        if again:
            console.print(f"{self._labels[key]}: its process was lost; started again on {host}")
            if (row := self._rows.pop(key, None)) is not None:
                self._bars.remove_task(row)
        elif self._bars.disable:
            console.print(f"{self._labels[key]}: started on {host}", style="dim")
        self._spoke[key] = time.monotonic()
        self._rows[key] = self._bars.add_task(self._labels[key], total=None, said=host)
        self._count()

    def _progress(self, key: Key, progress: Progress) -> None:
        if key not in self._rows:
            return
        steps = f"{progress.step}/{progress.num_steps}"
        said = f"{steps}, {progress.rate:.0f} img/s, loss {progress.loss:.3f}"
        self._bars.update(
            self._rows[key], completed=progress.step, total=progress.num_steps, said=said
        )
        if self._bars.disable and time.monotonic() - self._spoke[key] > EVERY_SECONDS:
            self._spoke[key] = time.monotonic()
            console.print(f"{self._labels[key]}: {said}")

    def _count(self) -> None:
        self._bars.update(self._whole, completed=len(self._ended), said=f"{self.running} running")
