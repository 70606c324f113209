"""Run one case in a forked child: collect its output and exit status, and end it if it hangs."""

import contextlib
import io
import json
import os
import select
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

ACCEPTED = (0, 1, 2, 3, 130)
"""Exit statuses that the command line documents; 70 is a fault of ours."""


@dataclass(frozen=True)
class Outcome:
    """How a case ended.

    Attributes:
        verdict: ``fine``, ``traceback``, ``hang``, ``died`` (by a signal) or ``wrong``.
        status: exit status; None after a hang or a signal.
        text: the last of what was printed.
        seconds: how long it took.
    """

    verdict: str
    status: int | None
    text: str
    seconds: float


def run_case(
    work: Callable[[], int],
    timeout: float,
    kill: tuple[float, int] | None = None,
) -> Outcome:
    """Let a forked child do ``work`` and return its exit status.

    Args:
        timeout: seconds after which the child, and all that it has started, is killed.
        kill: seconds *of the child's computing* after which to send a signal, and which: on a busy
            machine a kill falls on the same work as on an idle one.
    """
    with tempfile.TemporaryFile() as printed:
        began = time.monotonic()
        child = os.fork()
        if child == 0:
            _be_child(work, printed.fileno())
        status, hung = _wait(child, timeout, kill)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        printed.seek(0, io.SEEK_END)
        printed.seek(max(0, printed.tell() - 20_000))
        text = printed.read().decode("utf-8", "replace")
    return Outcome(*_judge(status, hung, text, kill), text, round(time.monotonic() - began, 2))


def _be_child(work: Callable[[], int], output: int) -> None:
    status = 99
    try:
        os.setsid()
        for number in (1, 2):
            os.dup2(output, number)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        status = work()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except KeyboardInterrupt:
        status = 130
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _wait(child: int, timeout: float, kill: tuple[float, int] | None) -> tuple[int, bool]:
    """Wait status of the child, and whether it had to be killed for taking too long."""
    descriptor = os.pidfd_open(child)
    try:
        left = timeout
        if kill is not None:
            deadline = time.monotonic() + timeout
            while not select.select([descriptor], [], [], 0.003)[0]:
                if _computed(child) >= kill[0] or time.monotonic() > deadline:
                    os.kill(child, kill[1])
                    break
            left = max(1.0, deadline - time.monotonic())
        hung = not select.select([descriptor], [], [], left)[0]
        if hung:
            os.kill(child, signal.SIGKILL)
        return os.waitpid(child, 0)[1], hung
    finally:
        os.close(descriptor)


def _computed(child: int) -> float:
    """Seconds that a process has computed, all threads together."""
    return time.clock_gettime((~child << 3) | 2)  # what clock_getcpuclockid(3) makes of a pid


def run_batch(
    work: Callable[[int], tuple[int, str]], numbers: Sequence[int], timeout: float
) -> Iterator[tuple[int, Outcome]]:
    """Let one child do ``work`` on one number after the other: for cases of milliseconds.

    A case that ends the child, or that is not over in time, is the last of it; the next child
    goes on with the next case.

    Args:
        work: exit status and what was printed, of one number.
    """
    left = list(numbers)
    while left:
        child, reading = _fork_for(work, left)
        with open(reading, "rb", buffering=0) as lines:  # select sees no buffer
            for outcome in _outcomes(child, lines, timeout):
                yield left.pop(0), outcome


def _fork_for(work: Callable[[int], tuple[int, str]], numbers: Sequence[int]) -> tuple[int, int]:
    """A child at work, and the end of a pipe from which to read what it says of each case."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _be_child(lambda: _one_after_the_other(work, numbers, writing), 2)
    os.close(writing)
    return child, reading


def _one_after_the_other(
    work: Callable[[int], tuple[int, str]], numbers: Sequence[int], output: int
) -> int:
    # The parent may have heard enough.
    with contextlib.suppress(BrokenPipeError), open(output, "w") as file:
        for number in numbers:
            began = time.monotonic()
            try:
                status, text = work(number)
            except BaseException:
                status, text = 99, traceback.format_exc()
            print(json.dumps([status, text[-3000:], round(time.monotonic() - began, 3)]), file=file)
            file.flush()
    return 0


def _outcomes(child: int, lines: BinaryIO, timeout: float) -> Iterator[Outcome]:
    """What a child says of its cases, until it ends; it is waited for."""
    while True:
        hung = not select.select([lines], [], [], timeout)[0]
        line = b"" if hung else lines.readline()
        if not line:
            break
        status, text, seconds = json.loads(line)
        yield Outcome(*_judge(status << 8, False, text, None), text, seconds)
    if hung:
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    if hung or not os.WIFEXITED(status) or os.WEXITSTATUS(status):
        yield Outcome(*_judge(status, hung, "", None), "", timeout if hung else 0.0)


def _judge(
    status: int, hung: bool, text: str, kill: tuple[float, int] | None
) -> tuple[str, int | None]:
    if hung:
        return "hang", None
    if os.WIFSIGNALED(status):
        expected = kill is not None and os.WTERMSIG(status) == kill[1]
        return ("fine" if expected else "died"), None
    code = os.WEXITSTATUS(status)
    # A killed program may be cut in the middle of an import, which Python reports.
    interrupted = kill is not None and "KeyboardInterrupt" in text
    if code not in ACCEPTED or ("Traceback (most recent call last)" in text and not interrupted):
        return "traceback", code
    return "fine", code


def quiet_cli(words: list[str]) -> int:
    """The command line, in this process."""
    from ssdistill.commands.main import main

    return main(words)


def copy_tree(source: Path, target: Path) -> Path:
    """A copy of a folder in which nothing is shared with the original."""
    import shutil

    return Path(shutil.copytree(source, target, symlinks=True))
