"""One case in one forked child: what it prints, how it ends, and an end to it if it does not."""

import contextlib
import io
import os
import select
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

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
        kill: seconds after which to send a signal, and which.
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
            if not select.select([descriptor], [], [], kill[0])[0]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, kill[1])
            left = max(1.0, timeout - kill[0])
        hung = not select.select([descriptor], [], [], left)[0]
        if hung:
            os.kill(child, signal.SIGKILL)
        return os.waitpid(child, 0)[1], hung
    finally:
        os.close(descriptor)


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
    from ssdistill.cli import main

    return main(words)


def copy_tree(source: Path, target: Path) -> Path:
    """A copy of a folder in which nothing is shared with the original."""
    import shutil

    return Path(shutil.copytree(source, target, symlinks=True))
