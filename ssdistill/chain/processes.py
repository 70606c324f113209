"""Find out whether several processes run one command, and who started them."""

import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ssdistill.errors import UserError

if TYPE_CHECKING:  # this also runs if torch cannot be imported
    from ssdistill.train.settings import DeviceSettings

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
SUPPORTED = ("torchrun", "srun")
OWN = "ssdistill"
OWN_SIZE = "SSDISTILL_PROCESSES"
"""Set for processes that were started by the first of them: how many there are."""
OWN_NODES = "SSDISTILL_NODES"
TASKS_PER_NODE = "SLURM_NTASKS_PER_NODE"
REMEDY = {
    "torchrun": "start it without torchrun, or with --nproc_per_node 1 and one node",
    "srun": "use srun --ntasks=1, or a job array with seeds=[$SLURM_ARRAY_TASK_ID]",
}
EXIT_REFUSED = 2
SECONDS_FOR_THE_FIRST = 3.0
"""Launchers end all processes as soon as one fails; the first needs this long to say why."""
MOST_DIGITS = 10


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
    if (size := number_in(environ.get(OWN_SIZE))) > 1:
        per_node = size // max(1, number_in(environ.get(OWN_NODES)) or 1)
        node, local = (number_in(environ.get(name)) for name in ("NODE_RANK", "LOCAL_RANK"))
        return Launch(OWN, size, node * per_node + local)
    for launcher, size_name, rank_names in LAUNCHERS:
        rank = max((number_in(environ.get(name)) for name in rank_names), default=0)
        size = number_in(environ.get(size_name))
        if launcher == "srun" and rank > 0:
            # Old or wrapped steps may lack their size, but only a step has a second task.
            size = max(size, number_in(environ.get("SLURM_NTASKS")), rank + 1)
        if size > 1:
            return Launch(launcher, size, rank)
    return None


def count_processes(device: "DeviceSettings") -> int:
    """Return how many processes share the experiment.

    Raises:
        UserError: the settings contradict what a launcher started, or it is not supported.
    """
    launch = several_processes()
    if launch is None or launch.launcher == OWN:
        if device.devices is None and device.num_nodes > 1:
            raise UserError("device.num_nodes: set device.devices, too, the processes on each node")
        return (device.devices or 1) * device.num_nodes
    if launch.launcher not in SUPPORTED:
        raise UserError(
            f"{launch.launcher} started {launch.size} processes, and is not supported; use "
            "torchrun or srun, or set device.devices without a launcher"
        )
    wanted = (device.devices or 0) * device.num_nodes
    if wanted not in (0, launch.size):
        raise UserError(
            f"device.devices={device.devices} on device.num_nodes={device.num_nodes} are {wanted} "
            f"processes, but {launch.launcher} started {launch.size}; remove device.devices"
        )
    return launch.size


def require_single_process() -> None:
    """Raise an error if a launcher started several processes.

    Raises:
        UserError: naming the launcher and what to do instead.
    """
    if launch := several_processes():
        remedy = REMEDY.get(launch.launcher, f"use {launch.launcher} with one process")
        raise UserError(
            f"{launch.launcher} started {launch.size} processes; this runs in one: {remedy}"
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


def tasks_per_node(size: int) -> int:
    """Return how many tasks of a step ``srun`` has started on each node.

    Args:
        size: tasks in all.

    Raises:
        UserError: not as many on every node.
    """
    names = ("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE")
    said = next((text for name in names if (text := os.environ.get(name))), "")
    nodes = number_in(os.environ.get("SLURM_STEP_NUM_NODES")) or 1
    count = number_in(re.sub(r"\(x\d+\)$", "", said)) if said else size // nodes
    if count == 0 or size % count:
        raise UserError(
            f"srun started {size} tasks, not as many on every node ({said}); use "
            "srun --ntasks-per-node"
        )
    return count


def number_in(text: str | None) -> int:
    """Return the number in a variable of the environment; 0 if there is none."""
    digits = (text or "").strip()
    return int(digits) if digits.isdecimal() and len(digits) < MOST_DIGITS else 0
