"""Do one stage in the processes of several nodes, which Ray Train places, starts and ends together.

On every node, one worker of Ray Train starts the first process of the node, as a person would who
sets ``MASTER_ADDR``, ``MASTER_PORT`` and ``NODE_RANK``; that one starts the others.
"""

import os
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ssdistill.chain.executors import key_of
from ssdistill.chain.executors.bulletin import LINE
from ssdistill.chain.executors.ray_cluster import alive_nodes, here
from ssdistill.chain.executors.requests import Request, apply_request, as_sendable
from ssdistill.chain.executors.stage_processes import LostProcess, do_in_processes
from ssdistill.errors import UserError, one_line, was_interrupted

V2 = "RAY_TRAIN_V2_ENABLED"
SECONDS_FOR_A_NODE = 60.0
"""In which another node may take the place of one that was lost."""
SECONDS_TO_END = 25.0
"""That the processes have after a cancellation, before they are killed."""
OF_WORKERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK")
"""Variables of the workers, which would mean other processes to those that they start."""
PAUSE = 1.0
"""Seconds between two looks whether the stage was canceled."""
FOLDER = ".ray-train"
"""Folder in the runs folder for Ray Train's own files, while it works."""


class Meeting:
    """An actor between the task of a stage and its workers on the nodes."""

    def __init__(self) -> None:
        self._canceled = False
        self._errors: dict[int, Exception] = {}

    def cancel(self) -> None:
        """Tell the workers to end."""
        self._canceled = True

    def is_canceled(self) -> bool:
        """Return whether they were told."""
        return self._canceled

    def note(self, number: int, error: Exception) -> None:
        """Keep why the worker of a node ended."""
        self._errors[number] = error

    def errors(self) -> dict[int, Exception]:
        """Return what was kept, by number of the node."""
        return self._errors


def do_on_several_nodes(request: Request, root: Path, bulletin: Any) -> None:
    """Do the stage of a request; called in a task that reserves nothing itself.

    Args:
        root: the runs folder, which the nodes share.
        bulletin: gets what the processes print.

    Raises:
        UserError: what the processes say is wrong.
        LostProcess: one of them, or a node, was lost.
        KeyboardInterrupt: this task was canceled; the processes have saved a checkpoint.
    """
    os.environ.setdefault(V2, "1")
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    meeting: Any = (
        ray.remote(Meeting).options(num_cpus=0, scheduling_strategy=here()).remote()  # pyright: ignore[reportAttributeAccessIssue]
    )
    reserved, name = request.reserved, secrets.token_hex(8)
    each = {"CPU": reserved.cpus, "GPU": reserved.gpus, "memory": reserved.memory}
    trainer = TorchTrainer(
        _on_one_node,
        train_loop_config={"request": request, "meeting": meeting, "bulletin": bulletin},
        # For the workers to meet; the processes that they start train by themselves.
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(
            num_workers=reserved.nodes,
            use_gpu=reserved.gpus > 0,
            resources_per_worker={word: amount for word, amount in each.items() if amount},
            placement_strategy="STRICT_SPREAD",
        ),
        run_config=RunConfig(name=name, storage_path=str(root / FOLDER)),
    )
    # A thread that was joined when a KeyboardInterrupt came is taken for ended (Python 3.11).
    failures, ended = [], threading.Event()

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:
            failures.append(error)
        finally:
            ended.set()

    # In the main thread, Ray Train would take Ctrl-C for itself, and kill its workers.
    threading.Thread(target=fit, daemon=True).start()
    enough = time.monotonic()
    try:
        while not ended.wait(PAUSE):
            if sum(map(reserved.fits, alive_nodes())) >= reserved.nodes:
                enough = time.monotonic()
            elif time.monotonic() - enough > SECONDS_FOR_A_NODE:  # Ray Train would wait for one
                raise UserError(
                    f"a node was lost, and fewer than {reserved.nodes} are left that can take its "
                    "processes; run the same command again when it is back"
                )
    except KeyboardInterrupt:
        # Of a task that is canceled, Ray answers no calls but those of other threads.
        threading.Thread(target=lambda: ray.get(meeting.cancel.remote()), daemon=True).start()
        ended.wait(SECONDS_TO_END)
        raise
    finally:
        shutil.rmtree(root / FOLDER / name, ignore_errors=True)
        with suppress(OSError):
            (root / FOLDER).rmdir()  # unless another stage needs it
    if failures:
        raise _cause(failures[0], ray.get(meeting.errors.remote()))


def _cause(failure: BaseException, errors: dict[int, Exception]) -> Exception:
    """Return the error that tells most: one of the users', then of ours, then a loss."""
    known = [errors[number] for number in sorted(errors)]
    for error in known:
        if isinstance(error, UserError):
            return error
    for error in known:
        if not isinstance(error, LostProcess) and not was_interrupted(error):
            return error
    said = known[0] if known else failure
    return LostProcess(one_line(said))


def _on_one_node(config: dict[str, Any]) -> None:
    """Do this node's part: called by Ray Train, in a process of its own."""
    import ray
    import torch.distributed as dist

    request, meeting, bulletin = config["request"], config["meeting"], config["bulletin"]
    number = dist.get_rank()
    host, port = _together(lambda: (ray.util.get_node_ip_address(), _free_port()))
    for name in OF_WORKERS:
        os.environ.pop(name, None)
    variables = {"MASTER_ADDR": host, "MASTER_PORT": str(port), "NODE_RANK": str(number)}

    def say(line: str) -> None:
        with suppress(Exception):  # whoever shows it may be gone, which ends no training
            bulletin.post.remote((key_of(request.stage), LINE, line))

    def is_canceled() -> bool:
        return ray.get(meeting.is_canceled.remote())

    try:
        apply_request(request)
        do_in_processes(
            request.stage,
            request.experiment_of_node,
            Path(request.root),
            request.threads,
            say,
            variables,
            is_canceled,
        )
    except (Exception, KeyboardInterrupt) as error:
        reason = as_sendable(error) if isinstance(error, Exception) else RuntimeError("interrupted")
        ray.get(meeting.note.remote(number, reason))
        raise RuntimeError(one_line(reason)) from None


def _together(make: Callable[[], Any]) -> Any:
    """Return, in every worker, what the first one makes."""
    import torch.distributed as dist

    box = [make() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(box)
    return box[0]


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("", 0))
        return one.getsockname()[1]
