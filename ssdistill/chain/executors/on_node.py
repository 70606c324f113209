"""Do one stage on a node of a cluster; called by Ray."""

import logging
import pickle
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssdistill.chain.executors import Key, key_of
from ssdistill.chain.executors.bulletin import LINE, PROGRESS, STARTED, Lines
from ssdistill.chain.executors.on_several_nodes import do_on_several_nodes
from ssdistill.chain.executors.requests import Request, apply_request, as_sendable
from ssdistill.chain.executors.stage_processes import LostProcess, count_of, do_in_processes
from ssdistill.chain.remote_runs import RemoteRuns
from ssdistill.chain.run import do, duration_of
from ssdistill.chain.workspace import Workspace, open_workspace
from ssdistill.errors import UserError, was_interrupted
from ssdistill.record.run_record import RunRecord
from ssdistill.record.session import session
from ssdistill.train.progress import Progress, TrainingProgress, console

SECONDS_PER_MESSAGE = 1.0
"""Pause between two messages on how far a training is."""
SECONDS_TO_DELIVER = 10.0
"""For which an ended stage waits until its messages have arrived."""


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
            return Outcome(key, node, took=duration_of(_run_request(request, bulletin)))
        except LostProcess:
            raise
        except Exception as error:
            if was_interrupted(error):
                raise KeyboardInterrupt from error
            return Outcome(key, node, error=as_sendable(error))


def _run_request(request: Request, bulletin: Any) -> RunRecord:
    workspace, stage = _workspace(request), request.stage
    if request.reserved.nodes > 1:
        do_on_several_nodes(request, workspace.root, bulletin)
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


def _workspace(request: Request) -> Workspace:
    apply_request(request)
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
