"""Do one stage in several processes of a node: started by a task, and what they do.

The processes are those of ``ssdistill run``, which starts the others itself; a task only starts the
first, passes on what it prints, and ends with it.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from signal import SIG_UNBLOCK, SIGINT, default_int_handler, pthread_sigmask, signal
from types import MappingProxyType

from ssdistill.chain.lost_processes import EXIT_LOST
from ssdistill.chain.plan import plan_stages
from ssdistill.chain.process_group import LOG_LEVEL, Processes
from ssdistill.chain.run import do, follow, name_of
from ssdistill.chain.shared_training import require_same
from ssdistill.chain.stages import Identity, Stage
from ssdistill.chain.workspace import open_workspace
from ssdistill.errors import UserError
from ssdistill.experiment.schema import Experiment

SHARED_KINDS = ("pretrain", "distill", "compress", "evaluate")
"""Kinds of stages that ``device.devices`` processes share; the others are the work of one."""
PAUSE = 0.2
"""Seconds between two looks at a process."""
GRACE = 20.0
"""Seconds that it has to save a checkpoint."""
EXIT_USER_ERROR = 2
SAYS_WHY = ("error: ", "internal error: ")
"""Beginnings of the line that says why a process ended."""


class LostProcess(RuntimeError):
    """One of a stage's processes was lost; started again, the stage is resumed."""


def count_of(stage: Stage, experiment: Experiment) -> int:
    """Return how many processes share a stage."""
    device = experiment.device
    return (device.devices or 1) * device.num_nodes if stage.kind in SHARED_KINDS else 1


def do_in_processes(
    stage: Stage,
    experiment: Experiment,
    root: Path,
    threads: int,
    say: Callable[[str], object],
    variables: Mapping[str, str] = MappingProxyType({}),
    is_canceled: Callable[[], bool] = lambda: False,
) -> None:
    """Start the processes of this node, and wait for their end.

    Args:
        threads: of torch in each.
        say: called with every line that they print.
        variables: of their environment.
        is_canceled: called repeatedly; whether to end them.

    Raises:
        UserError: what they say is wrong.
        LostProcess: one of them was lost.
        KeyboardInterrupt: this task was canceled; they have saved a checkpoint.
    """
    config = experiment.model_dump(mode="json", by_alias=True, exclude_unset=True)
    last = ""
    with tempfile.TemporaryDirectory(prefix="ssdistill-") as folder:
        path = Path(folder) / "experiment.yaml"
        path.write_text(json.dumps(config), encoding="utf-8")
        command = [sys.executable, "-m", "ssdistill", "run", str(path), "--runs", str(root)]
        command += ["--stage", f"{stage.digest}/{stage.seed}"]
        # Ray sets the threads of a whole task.
        own = {"OMP_NUM_THREADS": str(threads), LOG_LEVEL: os.environ.get(LOG_LEVEL, "ERROR")}
        with subprocess.Popen(
            command,
            env=os.environ | own | dict(variables),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        ) as process:

            def pass_on() -> None:
                nonlocal last
                for line in process.stderr or ():
                    if line.strip():
                        last = line.strip() if line.startswith(SAYS_WHY) else last
                        say(line.strip())

            reader = threading.Thread(target=pass_on, daemon=True)
            reader.start()
            try:
                _wait_for(process, is_canceled=is_canceled)
            except KeyboardInterrupt:
                process.send_signal(SIGINT)
                _wait_for(process, GRACE)
                raise
            finally:
                process.kill()
                reader.join(GRACE)
    said, status = last.partition(": ")[2], f"a process ended with status {process.returncode}"
    if process.returncode == EXIT_USER_ERROR and said:
        raise UserError(said)
    if process.returncode == EXIT_LOST or process.returncode < 0:
        # One that was killed has said nothing.
        raise LostProcess(said or f"{status}; run the same command again to resume")
    if process.returncode:
        raise RuntimeError(said or status)


def _wait_for(
    process: subprocess.Popen,
    seconds: float | None = None,
    is_canceled: Callable[[], bool] = lambda: False,
) -> None:
    """Wait in small steps, between which a task can be canceled."""
    until = None if seconds is None else time.monotonic() + seconds
    while process.poll() is None and (until is None or time.monotonic() < until):
        if is_canceled():
            raise KeyboardInterrupt
        time.sleep(PAUSE)


def run_stage(experiment: Experiment, root: Path, name: str) -> int:
    """Do one stage, in the processes that share it; those that are not the first end here.

    Args:
        name: hash and seed, as ``hash/seed``.

    Returns:
        the exit status, 0.

    Raises:
        UserError: the experiment has no such stage here.
        SystemExit: in other processes than the first.
    """
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    # Actors of Ray may ignore or block it, and so would what they start.
    signal(SIGINT, default_int_handler)
    pthread_sigmask(SIG_UNBLOCK, [SIGINT])
    processes = Processes(experiment.device)
    if processes.rank > 0:
        follow(experiment, root, processes)
    workspace = open_workspace(experiment, root, processes=processes)
    stages = {f"{stage.digest}/{stage.seed}": stage for stage in plan_stages(workspace)}
    if name not in stages:
        raise UserError(
            "this node plans other stages than the process that submitted them; give all nodes the "
            "same data"
        )
    identity = Identity.of(experiment)
    with processes.joined():
        require_same(workspace, identity)
        processes.doing = name_of(stages[name])
        do(stages[name], workspace, identity)
        processes.dismiss()
    return 0


def _end_with(parent: int) -> None:
    """End this process once the one that started it is gone."""
    while os.getppid() == parent:
        time.sleep(PAUSE)
    os._exit(EXIT_LOST)
