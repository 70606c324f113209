"""Lightning Fabric, on one device or on several, however the process was started."""

import logging
from importlib.util import find_spec
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.parallel import DistributedDataParallel

from ssdistill.distributed import NO_LIMIT

if TYPE_CHECKING:  # a run whose stages are all cached need not wait for the import
    from lightning_fabric import Fabric
    from lightning_fabric.connector import _PLUGIN_INPUT, _PRECISION_INPUT
    from lightning_fabric.plugins.environments import ClusterEnvironment
    from lightning_fabric.plugins.precision.amp import MixedPrecision


def build_fabric(
    accelerator: str, devices: int | list[int] = 1, precision: "_PRECISION_INPUT | None" = None
) -> "Fabric":
    """Build a Fabric for this one process.

    Left to itself, Fabric reads the variables of a cluster (SLURM's ``SLURM_NTASKS``, those of
    LSF and MPI) as a wish for as many processes, and refuses a batch script that asks for more
    tasks than it has devices.

    Args:
        accelerator: ``auto``, ``cpu``, ``cuda``, …
        devices: how many, or the index of one.
        precision: in Fabric's words; its default if None.

    Raises:
        RuntimeError, ValueError: there is no such accelerator.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments import LightningEnvironment

    plugins: list[_PLUGIN_INPUT] = [LightningEnvironment()]
    if precision == "16-mixed":
        plugins, precision = [*plugins, _float16(accelerator)], None
    return Fabric(accelerator=accelerator, devices=devices, precision=precision, plugins=plugins)


def _float16(accelerator: str) -> "MixedPrecision":
    """Return autocast to float16 with a loss scale; Fabric would take bf16 instead on a CPU."""
    from lightning_fabric.plugins.precision.amp import MixedPrecision

    device = device_of(accelerator).type
    return MixedPrecision("16-mixed", device, torch.amp.GradScaler(device))


def fabric_of_processes(
    accelerator: str,
    devices: int,
    num_nodes: int,
    environment: "ClusterEnvironment",
    precision: "_PRECISION_INPUT | None" = None,
    *,
    find_unused: bool = False,
) -> "Fabric":
    """Build a Fabric for several processes.

    Where nobody else has started them, its ``launch`` starts the other processes of this node, by
    the command line of this one.

    Args:
        accelerator: as :func:`build_fabric` takes it.
        devices: processes per node, one for each device.
        environment: of the processes: who started them, and which one this is.
        precision: as :func:`build_fabric` takes it.
        find_unused: whether some parameters take no part in a step.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import DDPStrategy

    # It announces every process, and what it does when one of them fails.
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    # Buffers need no broadcast at every step: queues are equal in all processes, and so are batch
    # statistics, unless each process normalizes by its own, and then those of process 0 are kept.
    names = signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
    unsynchronized: dict[str, Any] = {name: False}
    plugins: list[_PLUGIN_INPUT] = [environment]
    if precision == "16-mixed":
        plugins, precision = [environment, _float16(accelerator)], None
    strategy = DDPStrategy(timeout=NO_LIMIT, find_unused_parameters=find_unused, **unsynchronized)
    return Fabric(
        accelerator=accelerator,
        devices=devices,
        num_nodes=num_nodes,
        strategy=strategy,
        precision=precision,
        plugins=plugins,
    )


def device_of(accelerator: str) -> torch.device:
    """Return the device of the networks; ask Fabric only if it might not be the CPU.

    Args:
        accelerator: as :func:`build_fabric` takes it.

    Raises:
        RuntimeError, ValueError: there is no such accelerator.
    """
    if accelerator == "cpu" or (accelerator == "auto" and not _has_accelerator()):
        return torch.device("cpu")
    return build_fabric(accelerator).device


def _has_accelerator() -> bool:
    """Whether Fabric might prefer another device to the CPU."""
    mps = torch.backends.mps.is_available()
    return torch.cuda.is_available() or mps or find_spec("torch_xla") is not None
