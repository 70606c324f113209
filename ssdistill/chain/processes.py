"""Detect launchers that start several copies of one command.

Several processes do not share a training yet. They would repeat the same work beside each
other, so they are refused before anything starts.
"""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass

from ssdistill.errors import UserError

LAUNCHERS = (
    ("torchrun", "WORLD_SIZE", ("RANK",)),
    ("srun", "SLURM_STEP_NUM_TASKS", ("SLURM_PROCID",)),
    ("mpirun", "OMPI_COMM_WORLD_SIZE", ("OMPI_COMM_WORLD_RANK",)),
    ("mpirun", "MV2_COMM_WORLD_SIZE", ("MV2_COMM_WORLD_RANK",)),
    ("mpirun", "PMI_SIZE", ("PMI_RANK", "PMIX_RANK")),
    ("jsrun", "JSM_NAMESPACE_SIZE", ("JSM_NAMESPACE_RANK",)),
    ("flux run", "FLUX_JOB_SIZE", ("FLUX_TASK_RANK",)),
    ("horovodrun", "HOROVOD_SIZE", ("HOROVOD_RANK",)),
)
"""Command, the variable that counts its processes, and those that number them from 0.

``SLURM_NTASKS`` and ``SLURM_PROCID=0`` stand in every batch script and count nothing that runs:
only ``srun`` sets the number of tasks of a step.
"""
REMEDY = {
    "torchrun": "start it without torchrun, or with --nproc_per_node 1 and one node",
    "srun": "use srun --ntasks=1, or a job array with seeds=[$SLURM_ARRAY_TASK_ID]",
}
EXIT_REFUSED = 2
SECONDS_FOR_THE_FIRST = 3.0
MOST_DIGITS = 10
"""Launchers end all processes as soon as one fails; the first needs this long to say why."""


@dataclass(frozen=True)
class Launch:
    """One of the processes that a launcher started.

    Attributes:
        launcher: the command that users know it by.
        size: processes in all.
        rank: number of this one, from 0.
    """

    launcher: str
    size: int
    rank: int


def several_processes(environ: Mapping[str, str] | None = None) -> Launch | None:
    """The launch this process belongs to, or None where it is alone."""
    environ = os.environ if environ is None else environ
    for launcher, size_name, rank_names in LAUNCHERS:
        rank = max((_number(environ.get(name)) for name in rank_names), default=0)
        size = _number(environ.get(size_name))
        if launcher == "srun" and rank > 0:
            # Old or wrapped steps may lack their size, but only a step has a second task.
            size = max(size, _number(environ.get("SLURM_NTASKS")), rank + 1)
        if size > 1:
            return Launch(launcher, size, rank)
    return None


def require_single_process() -> None:
    """Raise an error if a launcher started several processes.

    Raises:
        UserError: naming the launcher and what to do instead.
    """
    if launch := several_processes():
        remedy = REMEDY.get(launch.launcher, f"use {launch.launcher} with one process")
        raise UserError(
            f"{launch.launcher} started {launch.size} processes; ssdistill runs in one: {remedy}"
        )


def leave_if_not_first() -> None:
    """End every process but the first, which prints the error for all of them.

    Raises:
        SystemExit: in the others, after a while.
    """
    launch = several_processes()
    if launch and launch.rank > 0:
        time.sleep(SECONDS_FOR_THE_FIRST)
        raise SystemExit(EXIT_REFUSED)


def refuse_several_processes() -> None:
    """For commands: end all of several processes; the first prints the error.

    Raises:
        UserError: in the first one.
        SystemExit: in the others.
    """
    leave_if_not_first()
    require_single_process()


def _number(text: str | None) -> int:
    digits = (text or "").strip()
    return int(digits) if digits.isdecimal() and len(digits) < MOST_DIGITS else 0
