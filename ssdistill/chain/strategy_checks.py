"""Refuse what a strategy for several processes cannot do, before anything is read or trained."""

from ssdistill.chain.processes import count_processes
from ssdistill.errors import UserError
from ssdistill.experiment.schema import Experiment
from ssdistill.experiment.sections import DistillSettings
from ssdistill.train.fabric import device_of
from ssdistill.train.sharding import ACCELERATORS

DDP = "set device.strategy=ddp"


def check_strategy(experiment: Experiment) -> None:
    """Make sure that teachers can be sharded where ``device.strategy: fsdp`` asks for it.

    Raises:
        UserError: one process, a device without FSDP, something to be measured or moved that
            requires a whole teacher, or no distillation.
    """
    device = experiment.device
    if device.strategy != "fsdp":
        return
    if count_processes(device) == 1:
        raise UserError(
            f"device.strategy=fsdp shards teachers among processes; set device.devices, or {DDP}"
        )
    kind = device_of(device.accelerator).type
    if kind not in ACCELERATORS:
        raise UserError(f"device.strategy=fsdp is not available on '{kind}'; {DDP}")
    for key in ("precision", "memory_format"):
        if getattr(device, key) == "auto":
            raise UserError(
                f"device.{key}=auto measures with whole teachers; with device.strategy=fsdp, set it"
            )
    sections = {"distill": experiment.distill} if experiment.distill else {}
    sections |= {
        f"compare.{row}": settings
        for row, settings in experiment.compare.items()
        if isinstance(settings, DistillSettings)
    }
    if not sections:
        raise UserError(
            f"device.strategy=fsdp shards frozen teachers, and nothing is distilled; {DDP}"
        )
    for key, settings in sections.items():
        if settings.interpolate and settings.interpolate.when == "during":
            raise UserError(
                f"{key}.interpolate.when=during reads whole teachers, which device.strategy=fsdp "
                f"shards; {DDP}"
            )
