"""Print results: tables that fit the terminal, and pipes whose reader may close early."""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

MOST_DIGITS = 100
UNLIMITED = 100_000
"""Columns of an output that is no terminal: nothing is wrapped there."""


def output_width() -> int:
    """Columns to lay results out for: ``COLUMNS``, else the terminal's, else :data:`UNLIMITED`."""
    columns = os.environ.get("COLUMNS", "")
    # Nothing is as wide as what follows; of thousands of digits Python makes no number.
    if columns.isdecimal() and (width := int(columns[:MOST_DIGITS])):
        return min(width, UNLIMITED)
    try:
        # A terminal that does not know its width says 0.
        return os.get_terminal_size(sys.stdout.fileno()).columns or 80
    except (OSError, ValueError, AttributeError):
        return UNLIMITED


def show(renderable: Any) -> None:
    """Print a table, or whatever else rich can; names are never read as markup."""
    from rich.console import Console

    if sys.stdout is None:
        return
    # rich ignores a width without a height on a terminal that calls itself dumb.
    console = Console(
        width=output_width(), height=25, highlight=False, markup=False, emoji=False
    )  # fmt: skip
    with console.capture() as captured:
        console.print(renderable, crop=False)
    _write(captured.get())


def tell(paragraph: str) -> None:
    """Print prose, wrapped between words: a path in it stays in one piece."""
    from ssdistill.terminal.fitted_table import wrapped

    _write(f"{wrapped(paragraph, output_width())}\n")


def say(line: object) -> None:
    """Print one line of any length; paths and commands are not wrapped."""
    _write(f"{line}\n")


def complain(line: object, to: TextIO | None = None) -> None:
    """Print one line to standard error; one that takes nothing does not end the command.

    Args:
        to: standard error as it was before something replaced it.
    """
    stream = to or sys.stderr
    if stream is not None:
        try:
            stream.write(f"{line}\n")
            stream.flush()
        except OSError:
            mute(stream)


def mute(stream: TextIO) -> None:
    """Discard what is still written to a stream."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())


@contextmanager
def forgiving_streams() -> Iterator[None]:
    """Let a command end with its own status when the reader of a pipe has left (``… | head``).

    Characters that an output cannot encode are replaced instead of ending the command.
    """
    for stream in _streams():
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="replace")
    try:
        yield
    finally:
        for stream in _streams():
            _flush(stream)


def _streams() -> Iterable[TextIO]:
    return [stream for stream in (sys.stdout, sys.stderr) if stream is not None]


def _write(text: str) -> None:
    if sys.stdout is None:
        return
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        mute(sys.stdout)
    except OSError as error:
        mute(sys.stdout)  # or Python complains once more on its way out
        error.filename = error.filename or "standard output"
        raise


def _flush(stream: TextIO) -> None:
    try:
        stream.flush()
    except OSError:  # the reader has left, or the disk is full, which the writer reports
        mute(stream)
    except ValueError:  # closed already
        pass
