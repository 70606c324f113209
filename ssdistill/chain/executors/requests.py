"""The work that a node gets, how its process prepares for it, and errors that travel back."""

import copy
import os
import pickle
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ssdistill.chain.executors.nodes import difference, facts
from ssdistill.chain.executors.ray_cluster import Reserved
from ssdistill.chain.executors.stage_processes import count_of
from ssdistill.chain.plugged import check_plugins
from ssdistill.chain.stages import Identity, Stage
from ssdistill.errors import UserError, one_line
from ssdistill.experiment.schema import Experiment


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


def apply_request(request: Request) -> None:
    """Make this process like the one that planned the stage.

    Raises:
        UserError: the node has other versions, of a plug-in, say.
    """
    if problem := difference(facts(), dict(request.facts)):
        raise UserError(f"node {socket.gethostname()} {problem}")
    check_plugins(request.stage.config)
    os.environ.update(request.variables)
    if os.path.isdir(request.current):
        os.chdir(request.current)
    torch.set_num_threads(request.threads)


def as_sendable(error: Exception) -> Exception:
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
