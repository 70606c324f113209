"""A progress bar for passes over all images."""

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from ssdistill.errors import shown

SECONDS_WITHOUT_BAR = 2.0
Chunk = TypeVar("Chunk", bound=tuple)


def with_bar(
    chunks: Iterable[Chunk], total: int, title: str, done: int = 0, shown_at_all: bool = True
) -> Iterator[Chunk]:
    """Yield the chunks, whose first item are their rows; show a bar after two seconds.

    Args:
        done: rows of ``total`` that are done already.
        shown_at_all: False shows no bar.
    """
    console = Console(stderr=True)
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True)
    task, began = bar.add_task(escape(shown(title)), total=total, completed=done), time.monotonic()
    try:
        for chunk in chunks:
            yield chunk
            bar.advance(task, len(chunk[0]))
            is_late = time.monotonic() - began > SECONDS_WITHOUT_BAR
            if shown_at_all and console.is_terminal and is_late:
                bar.start()
    finally:
        if bar.live.is_started:
            bar.stop()
