"""Share trainings among processes.

Process 0 runs the experiment as if it were alone. When it comes to a training, it calls the others,
which have been waiting for it, and all of them train together, each on its part of every batch.
What is planned, recorded or saved is the work of process 0.
"""

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ssdistill.chain.arithmetic import FABRIC_PRECISION
from ssdistill.chain.executors.nodes import code_sha256
from ssdistill.chain.observers import Selecting, observers_of
from ssdistill.chain.process_group import Processes
from ssdistill.chain.recorded_outputs import use_recorded_outputs
from ssdistill.chain.stages import Identity, Stage
from ssdistill.chain.workspace import Workspace
from ssdistill.distributed import broadcast, gather_values, is_shared
from ssdistill.errors import UserError
from ssdistill.record.tracker import Tracker, TrackingSettings
from ssdistill.train.fabric import build_fabric
from ssdistill.train.loop import Training, fit
from ssdistill.train.sharing import Order, fit_unrecorded, has_unused, without_loader

if TYPE_CHECKING:
    from lightning_fabric import Fabric

REMEDIES = {
    "config": "has another config than process 0; start all of them by the same command",
    "images": "has other images than process 0; give all of them the same data",
    "code": "runs another version of ssdistill than process 0; install the same on every node",
    "torch": "has another version of torch than process 0; install the same on every node",
    "runs folder": "does not see the runs folder of process 0; choose a shared one with --runs",
}
"""What to do where a process differs from the first one."""


@dataclass
class Invitation:
    """What another process must know to take part in a training.

    Attributes:
        workspace: its own.
        stage: that trains.
        training: without its loader.
        order: of the loader.
        selecting: by what weights are selected.
        tracking: which steps are logged, and what is measured at them.
        recorded: whether recorded outputs of teachers are read.
    """

    workspace: Workspace
    stage: Stage
    training: Training
    order: Order
    selecting: Selecting
    tracking: TrackingSettings
    recorded: bool


@dataclass
class Own:
    """What process 0 alone has in a training.

    Attributes:
        training: with its loader.
        fabric: of this process alone.
        tracker: of the record.
        on_first_views: see :func:`ssdistill.train.loop.fit`.
    """

    training: Training
    fabric: "Fabric"
    tracker: Tracker
    on_first_views: Callable[[list[Tensor]], None]


def train_together(
    own: Own, stage: Stage, selecting: Selecting, workspace: Workspace, *, recorded: bool
) -> dict[str, float]:
    """Train in all processes; returns the final metrics.

    Args:
        recorded: whether to read, and first to record, the outputs of the teachers.
    """
    training, loader = own.training, own.training.loader
    invitation = Invitation(
        workspace,
        stage,
        without_loader(training),
        Order(
            loader.batch_size,
            loader.seed,
            loader.num_steps,
            weights=loader.weights,
            ahead=loader.ahead,
        ),
        selecting,
        own.tracker.settings,
        recorded,
    )
    return workspace.processes.do(_train, invitation, own=own)


def _train(invitation: Invitation, own: Own | None = None) -> dict[str, float]:
    training, workspace = invitation.training, invitation.workspace
    processes = workspace.processes
    precision = FABRIC_PRECISION[training.precision]
    if own is None:
        if processes.device.compile:
            training.task.encoder.compile()
        fabric = _fabric_of(processes, precision)
        neighbors = training.task.neighbors_NK
        training.loader = invitation.order.loader(workspace.train, fabric.device, neighbors)
    else:
        training, fabric = own.training, own.fabric
        if not is_shared():  # there was something that cannot be sent
            training.loader.take_part(0, 1)
    facts: dict[str, float] = {}
    if invitation.recorded:
        facts = use_recorded_outputs(training, fabric, workspace)
    observers = observers_of(
        training,
        invitation.selecting,
        invitation.tracking,
        invitation.stage,
        workspace,
        fabric.device,
    )
    if is_shared():
        fabric = processes.fabric(precision, find_unused=has_unused(training))
    if own is None:
        fit_unrecorded(training, fabric, invitation.tracking, observers)
        return {}
    return facts | fit(training, fabric, own.tracker, own.on_first_views, observers)


def _fabric_of(processes: Processes, precision: Any) -> "Fabric":
    """Return a Fabric of this process alone, on its own device."""
    device = processes.device_of_networks
    devices = [device.index or 0] if device.type == "cuda" else 1
    return build_fabric(processes.device.accelerator, devices, precision)


def require_same(workspace: Workspace, identity: Identity) -> None:
    """Make sure that all processes run the same experiment, on the same images, in one folder.

    What they work on from then on need not be sent.

    Raises:
        UserError: what differs, and in which process.
    """
    processes = workspace.processes
    if processes.size == 1:
        return
    train, test = workspace.train, workspace.test
    processes.root = workspace.root
    processes.present = {
        "workspace": workspace,
        "processes": processes,
        "training images": train,
        "test images": test,
        "pixels of training images": train.images,
        "pixels of test images": test.images,
    }
    facts = {
        "config": identity.digest,
        "images": (train.fingerprint, test.fingerprint),
        "code": code_sha256(),
        "torch": torch.__version__,
    }
    with processes.together():
        token = broadcast(secrets.token_hex(8))
        place = workspace.root / f".processes-{token}"
        if processes.rank == 0:
            workspace.root.mkdir(parents=True, exist_ok=True)
            place.touch()
        broadcast(None)  # it is there now
        facts["runs folder"] = place.exists()
        everyone = gather_values(facts)
    place.unlink(missing_ok=True)
    for number, others in enumerate(everyone):
        differing = [name for name, value in others.items() if value != everyone[0][name]]
        if differing:
            raise UserError(f"process {number}: {REMEDIES[differing[0]]}")
