"""Submit stages to Ray, follow them to their ends, and say what went wrong."""

import os
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from ssdistill.chain.executors import Job, Key, key_of
from ssdistill.chain.executors.live_view import LiveView
from ssdistill.chain.executors.lost_tasks import RETRIES, lost
from ssdistill.chain.executors.nodes import facts
from ssdistill.chain.executors.ray_cluster import (
    Node,
    Reserved,
    alive_nodes,
    node_affinity,
    reserved_by,
)
from ssdistill.errors import DamagedFile, UserError, one_line
from ssdistill.train.interrupt import Interruptible
from ssdistill.train.progress import console

if TYPE_CHECKING:
    from ssdistill.chain.executors.on_node import Outcome

PAUSE = 0.3
"""Seconds between two looks at what runs."""
GRACE = 30.0
"""Seconds that canceled stages have to save a checkpoint."""
SECONDS_TO_BE_SEEN = 60.0
"""Seconds for which NFS may remember that a file was not there."""
IDLE_SECONDS = 30.0
"""Seconds without a running stage after which that is said."""
SENT = ("WANDB_MODE", "WANDB_PROJECT", "WANDB_ENTITY", "WANDB_RUN_GROUP", "WANDB_TAGS")
"""Variables of the environment that stages get from here; no keys, which Ray would show."""
WHOLE_NODE = ("latency",)
"""Kinds of stages beside which nothing else may run on the node."""


@dataclass(frozen=True)
class Failure:
    """Why a stage is not finished.

    Attributes:
        error: what happened; None where it was not begun.
        parent: the failed stage that it descends from, if it was not begun.
    """

    error: Exception | None
    parent: Key | None = None


class RayTasks:
    """The stages of one call as tasks.

    Args:
        jobs: those that are not finished, by key, parents first.
        nodes: of the cluster.
        bulletin: the actor that running stages report to.
        trust: whether stages may run compiled models that were compiled elsewhere.
    """

    def __init__(self, jobs: Mapping[Key, Job], nodes: list[Node], bulletin: Any, trust: bool):
        import ray

        from ssdistill.chain.executors.on_node import work

        self.jobs, self.nodes, self.bulletin, self.trust = jobs, nodes, bulletin, trust
        self._task = ray.remote(work)
        self._refs: dict[Key, Any] = {}
        self._pending: dict[Any, Key] = {}
        self._starts: dict[Key, int] = {}
        self._failures: dict[Key, Failure] = {}
        self._view = LiveView(jobs.values())
        self._idle_since: float | None = None

    def finish(self) -> None:
        """Submit every stage, wait for all, and raise what went wrong.

        Raises:
            DamagedFile: nothing else went wrong than that a finished stage's file has changed.
            UserError: a stage failed; what descends from it was not begun.
            KeyboardInterrupt: after Ctrl-C, when all tasks have ended.
        """
        for job in self.jobs.values():  # before anything is submitted
            self._reserved(job)
        with self._view, Interruptible() as interrupt:
            try:
                for job in self.jobs.values():
                    self._submit(job)
                while self._pending and not interrupt.requested:
                    self._poll()
            finally:
                self._cancel()
        if interrupt.requested:
            raise KeyboardInterrupt
        if self._failures:
            raise self._summary()

    def _submit(self, job: Job) -> None:
        from ssdistill.chain.executors.requests import Request
        from ssdistill.chain.executors.stage_processes import LostProcess

        device, reserved = job.workspace.experiment.device, self._reserved(job)
        cpus, threads, strategy = reserved.cpus, device.resources.cpus, "DEFAULT"
        if job.stage.kind in WHOLE_NODE:
            node = next(node for node in self.nodes if reserved.fits(node))
            cpus, threads, strategy = node.cpus, node.cpus, node_affinity(node)
        request = Request(
            job.workspace.experiment,
            job.identity,
            job.stage,
            remote.url if (remote := job.workspace.remote) else job.workspace.root.absolute(),
            os.getcwd(),
            device.threads or threads,
            reserved,
            {name: os.environ[name] for name in SENT if name in os.environ},
            facts(),
            self.trust,
        )
        if reserved.nodes > 1:  # what the task starts there reserves it
            cpus, reserved = 0, Reserved(0, 0, 0)
        parents = [self._refs[key] for key in _parents(job) if key in self._refs]
        ref = self._task.options(
            name=job.label,
            num_cpus=cpus,
            num_gpus=reserved.gpus,
            memory=reserved.memory or None,
            max_retries=RETRIES,
            retry_exceptions=[LostProcess],
            scheduling_strategy=strategy,
        ).remote(request, self.bulletin, *parents)
        self._starts[job.key] = self._starts.get(job.key, 0) + 1
        self._refs[job.key], self._pending[ref] = ref, job.key

    def _poll(self) -> None:
        """Wait a moment; show and note what has happened."""
        import ray

        pending = list(self._pending)
        ended, _ = ray.wait(pending, num_returns=len(pending), timeout=PAUSE, fetch_local=False)
        self._show()
        for ref in ended:
            self._record_outcome(self.jobs[self._pending.pop(ref)], ref)
        self._report_idle()

    def _show(self) -> None:
        import ray
        from ray import exceptions

        # An actor that was lost is started again, and knows nothing of before.
        with suppress(exceptions.RayError):
            self._view.show(ray.get(self.bulletin.take.remote(), timeout=GRACE))

    def _record_outcome(self, job: Job, ref: Any) -> None:
        """Note what became of a task that has ended."""
        import ray
        from ray import exceptions

        failed = next((key for key in _parents(job) if key in self._failures), None)
        if failed is not None:
            cause = self._failures[failed].parent or failed
            self._failures[job.key] = Failure(None, cause)
            self._view.end(job.key, f"not run: {self.jobs[cause].label} failed", "red")
            return
        try:
            outcome = cast("Outcome", ray.get(ref))
        except (exceptions.TaskUnschedulableError, exceptions.NodeDiedError) as error:
            self.nodes = alive_nodes()  # of a whole node, there may be another
            if self._starts[job.key] > RETRIES or not self._fits(job):
                self._fail(job, lost(error))
            else:
                self._submit(job)
            return
        except exceptions.RayError as error:
            self._fail(job, lost(error))
            return
        if outcome.error is not None:
            self._fail(job, outcome.error, outcome.node)
            return
        if job.workspace.remote:
            job.workspace.remote.fetch(job.stage.folder(job.workspace.root))
        if not _wait_until_visible(job):
            text = f"it is finished on {outcome.node} and not in {job.workspace.root} as seen here"
            self._fail(job, UserError(f"{text}; choose a runs folder that all share with --runs"))
        else:
            self._view.end(job.key, outcome.took)

    def _reserved(self, job: Job) -> Reserved:
        from ssdistill.chain.executors.stage_processes import count_of

        experiment = job.workspace.experiment
        reserved = reserved_by(experiment.device, self.nodes, count_of(job.stage, experiment))
        if reserved.nodes > 1 and (remote := job.workspace.remote):
            raise UserError(
                f"--runs {remote.url}: the processes of {job.label} are on {reserved.nodes} nodes, "
                "which must share a folder; choose one, or lower device.devices"
            )
        return reserved

    def _fits(self, job: Job) -> bool:
        try:
            self._reserved(job)
        except UserError:
            return False
        return True

    def _fail(self, job: Job, error: Exception, node: str = "") -> None:
        self._failures[job.key] = Failure(error)
        reason = str(error) if isinstance(error, UserError) else f"{_name(error)}{one_line(error)}"
        self._view.end(job.key, f"failed{node and f' on {node}'}: {reason}", "red")

    def _report_idle(self) -> None:
        """Say why nothing runs where that lasts: a node may be missing, or others are at work."""
        now = time.monotonic()
        if self._view.running or self._idle_since is None:
            self._idle_since = now
        elif now - self._idle_since > IDLE_SECONDS:
            self._idle_since = now
            console.print(
                f"{len(self._pending)} stages wait for a free node (what each reserves: "
                "device.resources); Ctrl-C to stop"
            )

    def _cancel(self) -> None:
        """End the tasks that are left: they save a checkpoint first, if they do it in time."""
        import ray
        from ray import exceptions

        if not self._pending:
            return
        count = self._view.running
        console.print(f"canceling; {count} running stages save what they have")
        with suppress(exceptions.RayError):
            for force in (False, True):
                for ref in self._pending:
                    with suppress(ValueError):  # it has ended
                        # What a task has started, it ends itself at first.
                        ray.cancel(ref, force=force, recursive=force)
                until = time.monotonic() + GRACE
                while self._pending and time.monotonic() < until:
                    pending = list(self._pending)
                    ended, _ = ray.wait(pending, num_returns=len(pending), timeout=PAUSE)
                    for ref in ended:
                        del self._pending[ref]
                    self._show()

    def _summary(self) -> Exception:
        """Return the error of the call."""
        failed = {key: f.error for key, f in self._failures.items() if f.error is not None}
        errors = list(failed.values())
        if all(isinstance(error, DamagedFile) for error in errors):
            return errors[0]
        for error in errors:
            if not isinstance(error, UserError):
                return error
        key, error = next(iter(failed.items()))
        text = f"{self.jobs[key].label}: {error}"
        if len(failed) > 1:
            text = f"{len(failed)} stages failed (the others are named above), such as {text}"
        not_run = len(self._failures) - len(failed)
        return UserError(
            f"{text}; {not_run} more were not run because of that" if not_run else text
        )


def _wait_until_visible(job: Job) -> bool:
    """Whether a stage that another node has finished is finished here, as soon as that is seen."""
    folder, until = job.stage.folder(job.workspace.root), time.monotonic() + SECONDS_TO_BE_SEEN
    while job.stage.status(job.workspace.root) != "finished":
        if time.monotonic() > until:
            return False
        with suppress(OSError):
            os.listdir(folder)
        time.sleep(PAUSE)
    return True


def _parents(job: Job) -> Iterable[Key]:
    """Keys of the parents, each once."""
    return dict.fromkeys(key_of(parent) for parent in job.stage.parents.values())


def _name(error: Exception) -> str:
    return "" if isinstance(error, OSError) else f"{type(error).__name__}: "
