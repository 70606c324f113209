"""Lightning Fabric on one device, however the process was started."""

from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:  # a run whose stages are all cached need not wait for the import
    from lightning_fabric import Fabric
    from lightning_fabric.connector import _PLUGIN_INPUT, _PRECISION_INPUT


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
    return Fabric(accelerator=accelerator, devices=devices, precision=precision, plugins=plugins)


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
