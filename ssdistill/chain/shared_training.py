"""Share trainings among processes.

Process 0 runs the experiment as if it were alone. When it comes to a training, it sends the task
to the others, which have been waiting for it, and all of them train it together, each on its part
of every batch. What is planned, measured, recorded or saved is the work of process 0.
"""

import copy
import hashlib
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch

from ssdistill.chain.arithmetic import FABRIC_PRECISION
from ssdistill.chain.process_group import Processes
from ssdistill.chain.recorded_outputs import use_recorded_outputs
from ssdistill.chain.stages import Identity
from ssdistill.chain.workspace import Workspace
from ssdistill.data.loader import Loader
from ssdistill.distributed import broadcast, gather_values
from ssdistill.errors import UserError
from ssdistill.record.run import Run
from ssdistill.record.tracker import Tracker, TrackingSettings
from ssdistill.train.fabric import build_fabric
from ssdistill.train.loop import Training, fit
from ssdistill.train.microbatch import in_microbatches
from ssdistill.train.unused import may_leave_unused

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
TRAIN, DISMISSED = "train", "dismissed"
"""Words of process 0 for the others."""


class Order(NamedTuple):
    """Which images a loader brings at which step."""

    batch_size: int
    seed: int
    num_steps: int


@dataclass
class Invitation:
    """What another process must know to take part in a training.

    Attributes:
        training: without its loader.
        order: of the loader.
        weights: by which images are drawn; None for none.
        ahead: batches to prefetch.
        tracking: which steps are logged.
        unused: whether some parameters take no part in a step.
    """

    training: Training
    order: Order
    weights: np.ndarray | None
    ahead: int
    tracking: TrackingSettings
    unused: bool


@contextmanager
def shared(
    training: Training, tracker: Tracker, processes: Processes, fabric: "Fabric"
) -> Iterator["Fabric"]:
    """Within the block, the training takes place in all processes.

    Args:
        fabric: of this process alone.

    Yields:
        the Fabric to train with.
    """
    if processes.size == 1:
        yield fabric
        return
    # A teacher that is to be sharded may be too large to be tried.
    sharded = training.strategy == "fsdp" and bool(training.task.teachers)
    unused = may_leave_unused(training) if sharded else _has_unused(training)
    processes.call(TRAIN)
    with processes.together():
        loader = training.loader
        broadcast(
            Invitation(
                replace(training, loader=None, progress=False),  # pyright: ignore[reportArgumentType]
                Order(loader.batch_size, loader.seed, loader.num_steps),
                loader.weights,
                loader.ahead,
                tracker.settings.model_copy(update={"wandb": "disabled", "tensorboard": False}),
                unused,
            )
        )
        yield processes.fabric(FABRIC_PRECISION[training.precision], find_unused=unused)


def _has_unused(training: Training) -> bool:
    """Return whether a step leaves parameters without a gradient; the training stays as it is."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        task = copy.deepcopy(training.task).to(training.loader.device).train()
        batch = training.batch(0)
        with in_microbatches(task, len(batch.index_B), training.microbatch):
            losses = task(training.views(batch), replace(batch, crops={}))
        torch.as_tensor(sum(losses.values())).backward()
    return any(p.requires_grad and p.grad is None for p in task.parameters())


def take_part(workspace: Workspace) -> None:
    """Take part in every training that process 0 invites to, until it dismisses this process."""
    processes = workspace.processes
    while processes.await_call() == TRAIN:
        with processes.together():
            _train(workspace, processes)


def _train(workspace: Workspace, processes: Processes) -> None:
    invitation = cast("Invitation", broadcast(cast("Any", None)))
    training = invitation.training
    if processes.device.compile:
        training.task.encoder.compile()
    precision = FABRIC_PRECISION[training.precision]
    fabric = processes.fabric(precision, find_unused=invitation.unused)
    training.loader = Loader(
        workspace.train,
        invitation.order.batch_size,
        invitation.order.seed,
        invitation.order.num_steps,
        fabric.device,
        world_size=processes.size,
        rank=processes.rank,
        neighbors=training.task.neighbors_NK,
        weights=invitation.weights,
        ahead=invitation.ahead,
    )
    if training.passes is not None:
        own = build_fabric(processes.device.accelerator, precision=precision)
        use_recorded_outputs(training, own, workspace)
    with tempfile.TemporaryDirectory(prefix="ssdistill-") as folder:
        # A record that nobody reads: process 0 keeps the one that counts.
        run = Run(folder, stage="train", digest="", seed=0)
        fit(training, fabric, Tracker(run, invitation.tracking))


def require_same(workspace: Workspace, identity: Identity) -> None:
    """Make sure that all processes run the same experiment, on the same images, in one folder.

    Raises:
        UserError: what differs, and in which process.
    """
    processes = workspace.processes
    if processes.size == 1:
        return
    facts = {
        "config": identity.digest,
        "images": (workspace.train.fingerprint, workspace.test.fingerprint),
        "code": _code_sha256(),
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


def _code_sha256() -> str:
    """Return the sha256 of this package's code."""
    folder = Path(__file__).parents[1]
    sha256 = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        sha256.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return sha256.hexdigest()
