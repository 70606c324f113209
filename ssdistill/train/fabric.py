"""Lightning Fabric on one device, whatever started the process."""

from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import LightningEnvironment


def build_fabric(
    accelerator: str, devices: int | list[int] = 1, precision: str | None = None
) -> Fabric:
    """Fabric in this one process.

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
    plugins = [LightningEnvironment()]
    return Fabric(accelerator=accelerator, devices=devices, precision=precision, plugins=plugins)
