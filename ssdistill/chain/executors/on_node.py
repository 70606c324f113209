"""Do one stage on a node of a cluster; called by Ray."""

import copy
import logging
import os
import pickle
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ssdistill.chain.executors import Key, key_of
from ssdistill.chain.executors.bulletin import LINE, PROGRESS, STARTED, Lines
from ssdistill.chain.executors.nodes import difference, facts
from ssdistill.chain.executors.on_several_nodes import do_on_several_nodes
from ssdistill.chain.executors.ray_cluster import Reserved
from ssdistill.chain.executors.stage_processes import LostProcess, count_of, do_in_processes
from ssdistill.chain.remote_runs import RemoteRuns
from ssdistill.chain.run import do, duration_of
from ssdistill.chain.stages import Identity, Stage
from ssdistill.chain.workspace import Workspace, open_workspace
from ssdistill.errors import UserError, one_line, was_interrupted
from ssdistill.experiment.schema import Experiment
from ssdistill.record.run_record import RunRecord
from ssdistill.record.session import session
from ssdistill.train.progress import Progress, TrainingProgress, console

SECONDS_PER_MESSAGE = 1.0
"""Pause between two messages on how far a training is."""
SECONDS_TO_END = 25.0
"""That processes on other nodes have after a cancellation, before they are killed."""
SECONDS_TO_DELIVER = 10.0
"""For which an ended stage waits until its messages have arrived."""


@dataclass(frozen=True)
class Request:
    """One stage to do.

    Attributes:
        experiment, identity, stage: what is to be done, for whom.
        root: the runs folder, absolute, or the address of a remote one.
        current: folder that relative paths in the config start from.
        threads: of torch.
        reserved: what it reserves.
        variables: of the environment, to set.
        facts: :func:`ssdistill.chain.executors.nodes.facts` of the process that planned the stage.
        trust: whether compiled models in the runs folder may be run.
    """

    experiment: Experiment
    identity: Identity
    stage: Stage
    root: Path | str
    current: str
    threads: int
    reserved: Reserved
    variables: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    trust: bool = False

    @property
    def experiment_of_node(self) -> Experiment:
        """The experiment with the processes of each node."""
        if self.reserved.nodes == 1:
            return self.experiment
        per_node = count_of(self.stage, self.experiment) // self.reserved.nodes
        settings = {"devices": per_node, "num_nodes": self.reserved.nodes}
        device = self.experiment.device.model_copy(update=settings)
        return self.experiment.model_copy(update={"device": device})


@dataclass(frozen=True)
class Outcome:
    """What became of a stage.

    Attributes:
        key: of the stage.
        node: name of the host.
        took: how long, in words.
        error: why it failed; None if it is finished.
        failed_parent: the stage whose failure is the reason that this one was not begun.
    """

    key: Key
    node: str = ""
    took: str = ""
    error: Exception | None = None
    failed_parent: Key | None = None

    @property
    def finished(self) -> bool:
        """Whether its results are in the runs folder."""
        return self.error is None and self.failed_parent is None


def work(request: Request, bulletin: Any, *parents: Outcome) -> Outcome:
    """Do the stage unless a parent has failed; an error is an outcome, not raised.

    So that Ray repeats what a lost process or node has interrupted, and nothing else.

    Raises:
        KeyboardInterrupt: the stage was canceled; it can be resumed.
        LostProcess: one of several processes of the stage was lost.
    """
    key, node = key_of(request.stage), socket.gethostname()
    for parent in parents:
        if not parent.finished:
            return Outcome(key, node, failed_parent=parent.failed_parent or parent.key)
    with _reporting(key, bulletin) as post:
        post(STARTED, node)
        try:
            return Outcome(key, node, took=duration_of(_do(request, bulletin)))
        except LostProcess:
            raise
        except Exception as error:
            if was_interrupted(error):
                raise KeyboardInterrupt from error
            return Outcome(key, node, error=portable(error))


def _do(request: Request, bulletin: Any) -> RunRecord:
    workspace, stage = _workspace(request), request.stage
    if request.reserved.nodes > 1:
        do_on_several_nodes(request, workspace.root, bulletin, SECONDS_TO_END)
        return stage.written(workspace.root)
    if count_of(stage, request.experiment) > 1:
        say = console.print
        around = workspace.remote.around(stage) if workspace.remote else nullcontext()
        with around:
            do_in_processes(stage, request.experiment, workspace.root, request.threads, say)
        return stage.written(workspace.root)
    with session({}, request.identity.tags, len(request.experiment.seeds)):
        return do(stage, workspace, request.identity)


_opened: dict[tuple[bytes, Path | str], Workspace] = {}
"""The last workspace of this process, which Ray uses for one stage after the other."""


def enter(request: Request) -> None:
    """Make this process like the one that planned the stage.

    Raises:
        UserError: the node has other versions.
    """
    if problem := difference(facts(), dict(request.facts)):
        raise UserError(f"node {socket.gethostname()} {problem}")
    os.environ.update(request.variables)
    if os.path.isdir(request.current):
        os.chdir(request.current)
    torch.set_num_threads(request.threads)


def _workspace(request: Request) -> Workspace:
    enter(request)
    place = pickle.dumps(request.experiment), request.root
    if place not in _opened:
        _opened.clear()
        remote = RemoteRuns(request.root) if isinstance(request.root, str) else None
        root = remote.folder if remote else Path(request.root)
        workspace = open_workspace(request.experiment, root)
        workspace.remote = remote
        _opened[place] = workspace
    workspace = _opened[place]
    if request.trust:
        from ssdistill.artifacts.runtimes.compiled_here import trust_stages

        trust_stages(workspace.root)
    if workspace.train.fingerprint != request.stage.fingerprint:
        raise UserError(
            f"node {socket.gethostname()} has other images than the process that planned the "
            "stages; give all nodes the same data"
        )
    return workspace


@contextmanager
def _reporting(key: Key, bulletin: Any) -> Iterator[Callable[[str, Any], None]]:
    """Within the block, what is printed and how far a training is go to the bulletin.

    It gives what posts another message.
    """
    import ray

    last, sent = 0.0, []

    def post(word: str, said: Any) -> None:
        with suppress(Exception):  # whoever shows it may be gone, which ends no training
            sent[:] = [bulletin.post.remote((key, word, said))]

    def watch(progress: Progress) -> None:
        nonlocal last
        if (now := time.monotonic()) - last > SECONDS_PER_MESSAGE:
            last = now
            post(PROGRESS, progress)

    lines = Lines(lambda line: post(LINE, line))
    handler = logging.StreamHandler(lines)  # pyright: ignore[reportArgumentType]
    logger = logging.getLogger("ssdistill")
    before, console.file = console._file, lines  # pyright: ignore[reportAttributeAccessIssue]
    logger.addHandler(handler)
    TrainingProgress.watchers.append(watch)
    try:
        yield post
    finally:
        TrainingProgress.watchers.remove(watch)
        logger.removeHandler(handler)
        console._file = before
        # The outcome takes another way, and would overtake messages, which arrive in order.
        with suppress(Exception):
            ray.wait(sent, timeout=SECONDS_TO_DELIVER)


def portable(error: Exception) -> Exception:
    """The error itself, or one with its name and message where it cannot be sent."""
    import traceback

    trace = "".join(traceback.format_exception(error))
    try:
        pickle.dumps(error)
        same = str(copy.copy(error)) == str(error)  # which makes it anew, as a message does
    except Exception:
        same = False
    if not same:
        error = RuntimeError(f"{type(error).__name__}: {one_line(error)}")
    # Tracebacks are not sent; the report of an internal error shows notes.
    error.add_note(trace)
    return error.with_traceback(None)
