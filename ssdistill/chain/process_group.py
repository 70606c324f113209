"""Join the processes that share an experiment, after starting those that nobody has started."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from subprocess import Popen
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import DistNetworkError, PrefixStore, TCPStore

from ssdistill.chain.lost_processes import (
    EXIT_LOST,
    PARENT,
    Watch,
    is_of_connection,
    watching_started,
)
from ssdistill.chain.processes import (
    OWN_NODES,
    OWN_SIZE,
    TASKS_PER_NODE,
    count_processes,
    number_in,
    several_processes,
    tasks_per_node,
)
from ssdistill.chain.sending import UNSENDABLE, pack, unpack
from ssdistill.distributed import NO_LIMIT, Team, broadcast, sharing
from ssdistill.errors import UserError, one_line
from ssdistill.train.fabric import build_fabric, device_of, fabric_of_processes
from ssdistill.train.progress import console
from ssdistill.train.settings import DeviceSettings

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from lightning_fabric.connector import _PRECISION_INPUT
    from lightning_fabric.plugins.environments import ClusterEnvironment

T = TypeVar("T")
LOG_LEVEL = "TORCH_CPP_LOG_LEVEL"
OF_NODES = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK")
"""What processes on several machines must be told, where no launcher does it."""
RENDEZVOUS = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE")
SET_HERE = (*RENDEZVOUS, OWN_SIZE, OWN_NODES, LOG_LEVEL, PARENT, TASKS_PER_NODE)
"""Variables that are set for the processes started here."""
PAUSE = 0.02
"""Seconds between two looks for a word of process 0."""
PATIENCE = 5.0
"""Seconds after a broken connection in which process 0 may say that it has left the work."""
WORK, DISMISSED = "work", "dismissed"
"""Words of process 0 for the others."""


class Processes(Team):
    """The processes that share an experiment, this one among them.

    Process 0 runs the experiment as if it were alone; the others wait until it calls them for a
    piece of work.

    Args:
        device: the settings of the experiment; None is one process.

    Attributes:
        size: how many there are.
        rank: number of this one, from 0.
        doing: what process 0 is doing, for messages.
        present: what every process has, under the same names.
        root: the runs folder.

    Raises:
        UserError: the settings contradict what a launcher started.
    """

    def __init__(self, device: DeviceSettings | None = None):
        self.device = device or DeviceSettings()
        self.size, self.rank, self.doing = 1, 0, "the start"
        if device is not None:
            self.size, launch = count_processes(device), several_processes()
            first_of_node = number_in(os.environ.get("NODE_RANK")) * (device.devices or 1)
            self.rank = launch.rank if launch else first_of_node * (self.size > 1)
        self._environment: ClusterEnvironment | None = None
        self._store: TCPStore | None = None
        self._started: list[Popen] | None = None
        self._meetings = self._calls = 0
        self.present: dict[str, Any] = {}
        self.root = Path()

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
            with watching_started(lambda: self._started, lambda: self.doing):
                self.fabric()
                watch = Watch(self.rank, self.size, lambda: self.doing)
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
            "nccl" if self.device_of_networks.type == "cuda" else "gloo",
            store=PrefixStore(f"meeting {self._meetings}", self._store),
            rank=self.rank,
            world_size=self.size,
            timeout=NO_LIMIT,
        )
        try:
            yield
        finally:
            dist.destroy_process_group()

    @property
    def device_of_networks(self) -> torch.device:
        """The device of this process."""
        device = device_of(self.device.accelerator)
        if self.size == 1 or device.type != "cuda":
            return device
        local = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID"))
        return torch.device("cuda", number_in(local))

    def do(self, work: Callable[..., T], *arguments: Any, **own: Any) -> T:
        """Do a piece of work in all processes; of process 0.

        What cannot be sent to the others is done by this process alone, and so is what is called
        for within a piece of work.
        """
        if self._store is None or dist.is_initialized():
            return super().do(work, *arguments, **own)
        try:
            packed = pack((work, arguments), self.present, self.root)
        except UNSENDABLE as error:
            console.print(f"  done by one process: {one_line(error)}", style="dim", markup=False)
            return super().do(work, *arguments, **own)
        self._call(WORK)
        with self.together(), sharing(True):
            try:
                broadcast(packed)
                return work(*arguments, **own)
            except BaseException:
                self._store.set(self._left, "")
                raise

    def dismiss(self) -> None:
        """Let the other processes go; of process 0."""
        self._call(DISMISSED)

    def take_part(self) -> None:
        """Do every piece of work that process 0 calls for, until it dismisses this process."""
        while self._await_call() == WORK:
            with self.together(), sharing(True):
                packed = broadcast(b"")
                work, arguments = unpack(packed, self.present, self.root, self.device_of_networks)
                try:
                    work(*arguments)
                except RuntimeError as error:
                    # Process 0 may do without the rest of this work, and call for another.
                    if not (is_of_connection(error) and self._has_left()):
                        raise

    @property
    def _left(self) -> str:
        return f"left meeting {self._meetings}"

    def _has_left(self) -> bool:
        assert self._store is not None
        until = time.monotonic() + PATIENCE
        with suppress(DistNetworkError):  # process 0 is gone
            while time.monotonic() < until:
                if self._store.check([self._left]):
                    return True
                time.sleep(PAUSE)
        return False

    def _call(self, word: str) -> None:
        if self._store is not None:
            self._calls += 1
            self._store.set(f"call {self._calls}", word)

    def _await_call(self) -> str:
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
        """Return a Fabric over all processes, see :func:`fabric_of_processes`.

        Raises:
            UserError: it cannot be set up.
        """
        from lightning_fabric.utilities.exceptions import MisconfigurationException

        device = self.device
        if self._environment is None:
            return build_fabric(device.accelerator, precision=precision)
        per_node = self.size // device.num_nodes
        if several_processes() and device.devices is None:
            per_node = _per_node(self.size)
        try:
            fabric = fabric_of_processes(
                device.accelerator,
                per_node,
                self.size // per_node,
                self._environment,
                precision,
                find_unused=find_unused,
            )
            if self._started is None:  # only the first launch starts some, into this list
                self._started = getattr(fabric.strategy.launcher, "procs", [])
            fabric.launch()
        except (MisconfigurationException, RuntimeError, ValueError) as error:
            remedy = "lower device.devices"
            if "address already in use" in str(error).lower():
                remedy = "set MASTER_PORT to a port that is free, or unset it"
            raise UserError(
                f"device.devices={per_node}: {self.size} processes cannot be set up "
                f"({one_line(error)}); {remedy}"
            ) from error
        return fabric

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
            # Lightning requires the variable, which srun sets with --ntasks-per-node alone.
            os.environ.setdefault(TASKS_PER_NODE, str(tasks_per_node(launch.size)))
            return SLURMEnvironment(auto_requeue=False)
        if self.device.num_nodes > 1 and not all(os.environ.get(n) for n in OF_NODES):
            raise UserError(
                f"device.num_nodes={self.device.num_nodes}: set {', '.join(OF_NODES)} on each "
                "machine, or start it by torchrun or srun"
            )
        # The others have nothing to say; what is wrong with a connection, process 0 says.
        os.environ.setdefault(LOG_LEVEL, "ERROR")
        os.environ[OWN_SIZE] = str(self.size)
        os.environ[OWN_NODES] = str(self.device.num_nodes)
        os.environ.setdefault(PARENT, str(os.getpid()))
        return LightningEnvironment()


def _per_node(size: int) -> int:
    """Return the processes that a launcher started on this node."""
    names = ("LOCAL_WORLD_SIZE", TASKS_PER_NODE)
    return next((n for name in names if (n := number_in(os.environ.get(name)))), size)
