"""Commands and processes that are forks of one process which has imported it all.

Importing for every process anew would take most of the time of a test.
"""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["ssdistill.chain.run", "ssdistill.commands.main", "ssdistill.train.fabric"]
)
LIMIT, AFTER_THE_FIRST = 300, 5


class Command:
    """``ssdistill`` with some words, in progress; used like :class:`subprocess.Popen`.

    Args:
        words: of the command.
        env: variables of its environment; None for those of this process.
        cwd: folder that it runs in.
        before: code that it executes first.
        said: file that gets all it prints; None for files of its own.
    """

    def __init__(
        self,
        words: Sequence[str],
        env: Mapping[str, str] | None = None,
        cwd: str | Path = ".",
        before: str = "",
        said: Path | None = None,
    ):
        self._folder = tempfile.TemporaryDirectory()
        self._files = [said or Path(self._folder.name) / name for name in ("out", "err")]
        arguments = [str(word) for word in words], dict(os.environ if env is None else env)
        arguments += os.path.abspath(cwd), before, [str(file) for file in self._files]
        self._process = FORKS.Process(target=_command, args=arguments, daemon=True)
        self._process.start()
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """Return the exit status, None while it runs."""
        return self._process.exitcode

    @property
    def returncode(self) -> int | None:
        """The exit status, None while it runs."""
        return self.poll()

    def send_signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def communicate(self, timeout: float) -> tuple[str, str]:
        """Wait for its end; return what it has printed, and what it has printed as errors."""
        self._process.join(timeout)
        if self.poll() is None:
            self._process.kill()
            self._process.join()
            raise subprocess.TimeoutExpired("ssdistill", timeout)
        out, err = (file.read_text() if file.exists() else "" for file in self._files)
        self._folder.cleanup()
        return out, err


def _command(words, env, cwd, before, files) -> None:
    os.environ.clear()
    os.environ |= env
    for number, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.chdir(cwd)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    exec(before, {})
    from ssdistill.commands.main import main

    status = 70
    try:
        status = main(words)
    except SystemExit as left:
        status = left.code if isinstance(left.code, int) else 1
    finally:
        with suppress(OSError):
            sys.stdout.flush()
        os._exit(status)


class Outcome(NamedTuple):
    """What became of processes: their statuses, and what they printed."""

    statuses: list[int]
    said: str


def run_forked(cases: list[list[dict]], env: Mapping[str, str]) -> list[Outcome]:
    """Run the processes of one case after the other, as torchrun starts them.

    Args:
        cases: for each process of a case ``words`` of the command, ``cwd``, ``variables`` of its
            environment instead of torchrun's, and ``before``, which it executes first. A single
            one is not started by torchrun.
    """
    return [_run(case, env) for case in cases]


def launch(case: list[dict], env: Mapping[str, str], said: Path | None = None) -> list[Command]:
    """Start the processes of a case, see :func:`run_forked`.

    Args:
        said: file that gets all they print; None for files of each.
    """
    port, commands = str(free_port()), []
    for number, own in enumerate(case):
        launched = _of_torchrun(number, len(case), port) if len(case) > 1 else {}
        variables = {**env, **own.get("variables", launched)}
        place, before = own.get("cwd", "."), own.get("before", "")
        commands.append(Command(own["words"], variables, place, before, said))
    return commands


def _run(case: list[dict], env: Mapping[str, str]) -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder) / "said"
        _wait(commands := launch(case, env, said))
        return Outcome([command.returncode for command in commands], said.read_text())


def _of_torchrun(number: int, size: int, port: str) -> dict[str, str]:
    return {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "WORLD_SIZE": str(size),
        "RANK": str(number),
        "LOCAL_RANK": str(number),
        "GROUP_RANK": "0",
        "LOCAL_WORLD_SIZE": str(size),
        "TORCHELASTIC_RUN_ID": "none",
    }


def _wait(commands: list[Command]) -> None:
    """Wait as torchrun does: it ends the others once one has failed."""
    until = time.monotonic() + LIMIT
    while running := [command for command in commands if command.poll() is None]:
        if any(command.poll() for command in commands):
            until = min(until, time.monotonic() + AFTER_THE_FIRST)
        if time.monotonic() > until:
            for command in running:
                command.send_signal(signal.SIGKILL)
        time.sleep(0.02)


def free_port() -> int:
    """Return a port of this machine that nothing listens to."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def run_together(work: Callable[..., None], *arguments: Any, count: int = 2) -> None:
    """Call ``work(number, *arguments)`` in so many processes; an error in one is raised."""
    torch.multiprocessing.start_processes(work, arguments, nprocs=count, start_method="forkserver")
