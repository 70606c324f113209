"""Do the stages as tasks of a Ray cluster, side by side where none descends from another."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssdistill.chain.executors import Job
from ssdistill.chain.executors.ray_cluster import (
    alive_nodes,
    check_address,
    check_nodes,
    connect,
    here,
    parse_address,
    require_ray,
)
from ssdistill.chain.executors.ray_tasks import RayTasks
from ssdistill.chain.process_group import Processes
from ssdistill.chain.processes import count_processes, require_single_process
from ssdistill.chain.run import is_cached
from ssdistill.errors import UserError
from ssdistill.experiment.schema import Experiment
from ssdistill.record.wandb_environment import in_sweep
from ssdistill.train.progress import console


class OnRay:
    """An :class:`ssdistill.chain.executors.Executor`: every stage is a task of a Ray cluster.

    It connects, or starts a cluster on this machine, once there is a stage to do.

    Args:
        where: ``ray``, ``ray://host:port`` or ``host:port``.
        trust: whether stages may run compiled models that were compiled elsewhere.

    Raises:
        UserError: Ray is not installed, or nobody answers at the address.
    """

    def __init__(self, where: str, trust: bool = False):
        self.address, self.trust = parse_address(where), trust
        require_ray()
        if self.address:
            check_address(self.address)
        self._bulletin: Any = None
        self._connected = False
        self._checked: set[Path] = set()

    def __enter__(self) -> "OnRay":
        return self

    def __exit__(self, *_: object) -> None:
        if self._connected:
            import ray

            self._bulletin, self._connected = None, False
            ray.shutdown()

    def processes_for(self, experiment: Experiment) -> Processes:
        """Return this process alone: those that share a training are started by its task.

        Raises:
            UserError: a launcher started several, or their number is not set, or an agent of W&B
                runs the command.
        """
        require_single_process()
        count_processes(experiment.device)
        if in_sweep():
            raise UserError(
                "--on: the agent of a W&B sweep logs all stages to one run, which several "
                "processes cannot; leave --on out"
            )
        return Processes()

    def finish(self, jobs: Sequence[Job]) -> None:
        """Do what is not finished; stages that do not descend from a failed one are finished.

        Raises:
            DamagedFile: what a finished stage wrote has changed.
            UserError: a stage failed, or the cluster cannot serve.
            KeyboardInterrupt: after Ctrl-C, when all tasks have ended.
        """
        missing = {job.key: job for job in jobs if not is_cached(job)}
        if not missing:
            return
        if self._bulletin is None:
            self._open()
        root = jobs[0].workspace.root
        nodes = alive_nodes()
        if not nodes:
            raise UserError(
                f"--on {self.address}: no node of the cluster has a CPU for stages; "
                "start one with `ray start --num-cpus`"
            )
        if root not in self._checked:
            check_nodes(nodes, root if jobs[0].workspace.remote is None else None)
            self._checked.add(root)
        RayTasks(missing, nodes, self._bulletin, self.trust).finish()

    def _open(self) -> None:
        import ray

        from ssdistill.chain.executors.bulletin import Bulletin

        if not ray.is_initialized():  # else the program that calls this one has connected
            where = self.address
            console.print("starting Ray" if where is None else f"connecting to {where}")
            self._connected = True
            connect(where)
        # On a node that is lost, it would take along what stages elsewhere have said.
        options = {"num_cpus": 0, "max_restarts": -1, "scheduling_strategy": here()}
        self._bulletin = ray.remote(Bulletin).options(**options).remote()
