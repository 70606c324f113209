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


def with_bar(chunks: Iterable[Chunk], total: int, title: str) -> Iterator[Chunk]:
    """Yield the chunks, whose first item are their rows; show a bar after two seconds."""
    console = Console(stderr=True)
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True)
    task, began = bar.add_task(escape(shown(title)), total=total), time.monotonic()
    try:
        for chunk in chunks:
            yield chunk
            bar.advance(task, len(chunk[0]))
            if console.is_terminal and time.monotonic() - began > SECONDS_WITHOUT_BAR:
                bar.start()
    finally:
        if bar.live.is_started:
            bar.stop()
