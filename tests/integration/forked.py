"""Processes of one run, as torchrun starts them: forks of a process that has imported it all.

Run as a script, which reads cases from standard input and writes what became of them:
importing for every process anew would take most of the time of a test.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from typing import NamedTuple

LIMIT, AFTER_THE_FIRST = 120, 5


class Outcome(NamedTuple):
    """What became of the processes: their statuses, and what they printed."""

    statuses: list[int]
    said: str


def run_forked(cases: list[list[dict]], env: dict[str, str]) -> list[Outcome]:
    """Run the processes of one case after the other.

    Args:
        cases: for each process of a case ``words`` of the command, ``cwd``, ``variables`` of its
            environment instead of torchrun's, and ``before``, which it executes first. A single
            one is not started by torchrun.
    """
    command = [sys.executable, __file__]
    done = subprocess.run(
        command, input=json.dumps(cases), env=env, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return [Outcome(*outcome) for outcome in json.loads(done.stdout)]


def _run(case: list[dict]) -> Outcome:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    with tempfile.TemporaryFile() as said:
        pids = [
            _fork(number, len(case), port, own, said.fileno()) for number, own in enumerate(case)
        ]
        statuses = _wait(pids)
        said.seek(0)
        return Outcome(statuses, said.read().decode())


def _wait(pids: list[int]) -> list[int]:
    """Wait as torchrun does: it ends the others once one has failed."""
    codes: dict[int, int] = {}
    until = time.monotonic() + LIMIT
    while len(codes) < len(pids):
        for pid in pids:
            if pid not in codes:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    codes[pid] = os.waitstatus_to_exitcode(status)
                    if codes[pid]:
                        until = min(until, time.monotonic() + AFTER_THE_FIRST)
                elif time.monotonic() > until:
                    os.kill(pid, 9)
        time.sleep(0.02)
    return [codes[pid] for pid in pids]


def _fork(number: int, size: int, port: str, own: dict, said: int) -> int:
    if pid := os.fork():
        return pid
    os.dup2(said, 1)
    os.dup2(said, 2)
    os.environ |= own.get("variables", {})
    if size > 1 and "variables" not in own:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(size)}
        os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "GROUP_RANK": "0"}
        os.environ |= {"LOCAL_WORLD_SIZE": str(size), "TORCHELASTIC_RUN_ID": "none"}
    os.chdir(own.get("cwd", "."))
    exec(own.get("before", ""), {})
    from ssdistill.commands.main import main

    status = 70
    try:
        status = main(own["words"])
    except SystemExit as left:
        status = left.code if isinstance(left.code, int) else 1
    finally:
        with suppress(OSError):
            sys.stdout.flush()
        os._exit(status)


if __name__ == "__main__":
    sys.path.pop(0)
    import ssdistill.chain.run
    import ssdistill.commands.main
    import ssdistill.train.fabric  # noqa: F401

    outcomes = [_run(case) for case in json.load(sys.stdin)]
    print(json.dumps(outcomes))
