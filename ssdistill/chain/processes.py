"""Start several processes that share an experiment, or find out who has started them."""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch.distributed as dist
from torch.distributed import DistNetworkError, PrefixStore, TCPStore

from ssdistill.chain.lost_processes import EXIT_LOST, Watch
from ssdistill.distributed import NO_LIMIT
from ssdistill.errors import UserError, one_line
from ssdistill.train.fabric import build_fabric, device_of, launch_fabric
from ssdistill.train.settings import DeviceSettings

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from lightning_fabric.connector import _PRECISION_INPUT
    from lightning_fabric.plugins.environments import ClusterEnvironment

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
LOG_LEVEL = "TORCH_CPP_LOG_LEVEL"
RENDEZVOUS = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE")
SET_HERE = (*RENDEZVOUS, OWN_SIZE, OWN_NODES, LOG_LEVEL)
"""Variables that are set for the processes started here."""
REMEDY = {
    "torchrun": "start it without torchrun, or with --nproc_per_node 1 and one node",
    "srun": "use srun --ntasks=1, or a job array with seeds=[$SLURM_ARRAY_TASK_ID]",
}
EXIT_REFUSED = 2
SECONDS_FOR_THE_FIRST = 3.0
"""Launchers end all processes as soon as one fails; the first needs this long to say why."""
MOST_DIGITS = 10
PAUSE = 0.02
"""Seconds between two looks for a word of process 0."""


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
    if (size := _number(environ.get(OWN_SIZE))) > 1:
        per_node = size // max(1, _number(environ.get(OWN_NODES)) or 1)
        node, local = (_number(environ.get(name)) for name in ("NODE_RANK", "LOCAL_RANK"))
        return Launch(OWN, size, node * per_node + local)
    for launcher, size_name, rank_names in LAUNCHERS:
        rank = max((_number(environ.get(name)) for name in rank_names), default=0)
        size = _number(environ.get(size_name))
        if launcher == "srun" and rank > 0:
            # Old or wrapped steps may lack their size, but only a step has a second task.
            size = max(size, _number(environ.get("SLURM_NTASKS")), rank + 1)
        if size > 1:
            return Launch(launcher, size, rank)
    return None


def count_processes(device: DeviceSettings) -> int:
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


class Processes:
    """The processes that share an experiment, this one among them.

    Args:
        device: the settings of the experiment; None is one process.

    Attributes:
        size: how many there are.
        rank: number of this one, from 0.
        doing: what process 0 is doing, for messages.

    Raises:
        UserError: the settings contradict what a launcher started.
    """

    def __init__(self, device: DeviceSettings | None = None):
        self.device = device or DeviceSettings()
        self.size, self.rank, self.doing = 1, 0, "the start"
        if device is not None:
            self.size, launch = count_processes(device), several_processes()
            first_of_node = _number(os.environ.get("NODE_RANK")) * (device.devices or 1)
            self.rank = launch.rank if launch else first_of_node * (self.size > 1)
        self._environment: ClusterEnvironment | None = None
        self._store: TCPStore | None = None
        self._meetings = self._calls = 0

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Join the other processes, after starting those that nobody has started.

        Raises:
            UserError: they do not find each other, or there are too few devices.
        """
        if self.size == 1:
            yield
            return
        before = {name: os.environ.get(name) for name in SET_HERE}
        try:
            self._environment = self._cluster_environment()
            launcher = getattr(self.fabric().strategy, "launcher", None)
            started = getattr(launcher, "procs", None)
            watch = Watch(self.rank, self.size, lambda: self.doing, started)
            self._store = watch.store
            dist.destroy_process_group()
            with watch.watching():
                yield
        finally:
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value

    @contextmanager
    def together(self) -> Iterator[None]:
        """Within the block, torch knows of the other processes.

        Outside, it does not: what one process does by itself, also in the code of others, must
        not wait for processes that do something else.
        """
        if self._store is None:
            yield
            return
        self._meetings += 1
        dist.init_process_group(
            "nccl" if device_of(self.device.accelerator).type == "cuda" else "gloo",
            store=PrefixStore(f"meeting {self._meetings}", self._store),
            rank=self.rank,
            world_size=self.size,
            timeout=NO_LIMIT,
        )
        try:
            yield
        finally:
            dist.destroy_process_group()

    def call(self, word: str) -> None:
        """Send a word to the other processes, which wait for it; of process 0."""
        if self._store is not None:
            self._calls += 1
            self._store.set(f"call {self._calls}", word)

    def await_call(self) -> str:
        """Wait for the next word of process 0."""
        assert self._store is not None
        self._calls += 1
        key = f"call {self._calls}"
        try:
            while not self._store.check([key]):
                time.sleep(PAUSE)
            return self._store.get(key).decode()
        except DistNetworkError:  # process 0 is gone, and the watch ends this one
            raise SystemExit(EXIT_LOST) from None

    def fabric(
        self, precision: "_PRECISION_INPUT | None" = None, *, find_unused: bool = False
    ) -> "Fabric":
        """Return a Fabric over all processes; see :func:`ssdistill.train.fabric.launch_fabric`.

        Raises:
            UserError: it cannot be set up.
        """
        device = self.device
        if self._environment is None:
            return build_fabric(device.accelerator, precision=precision)
        per_node = self.size // device.num_nodes
        if several_processes() and device.devices is None:
            per_node = _per_node(self.size)
        try:
            return launch_fabric(
                device.accelerator,
                per_node,
                self.size // per_node,
                self._environment,
                precision,
                find_unused=find_unused,
            )
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"device.devices={per_node}: {self.size} processes cannot be set up "
                f"({one_line(error)}); lower device.devices"
            ) from error

    def _cluster_environment(self) -> "ClusterEnvironment":
        from lightning_fabric.plugins.environments import (
            LightningEnvironment,
            SLURMEnvironment,
            TorchElasticEnvironment,
        )

        launch = several_processes()
        if launch and launch.launcher == "torchrun":
            return TorchElasticEnvironment()
        if launch and launch.launcher == "srun":
            return SLURMEnvironment(auto_requeue=False)
        # The others have nothing to say; what is wrong with a connection, process 0 says.
        os.environ.setdefault(LOG_LEVEL, "ERROR")
        os.environ[OWN_SIZE] = str(self.size)
        os.environ[OWN_NODES] = str(self.device.num_nodes)
        return LightningEnvironment()


def _per_node(size: int) -> int:
    """Return the processes that a launcher started on this node."""
    names = ("LOCAL_WORLD_SIZE", "SLURM_NTASKS_PER_NODE")
    return next((n for name in names if (n := _number(os.environ.get(name)))), size)


def _number(text: str | None) -> int:
    digits = (text or "").strip()
    return int(digits) if digits.isdecimal() and len(digits) < MOST_DIGITS else 0
