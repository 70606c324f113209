"""Frozen teachers whose weights are shared out among processes (fully sharded data parallelism).

Zhao et al., arXiv:2304.11277, in the version of ``torch.distributed.fsdp.fully_shard``: a process
holds its part of every weight, and gathers those of one block at a time while it encodes.
"""

import sys
from typing import Any, cast

import torch
from torch import nn

from ssdistill.distributed import world_size
from ssdistill.models.backbones import Encoder
from ssdistill.models.blocks import blocks_of
from ssdistill.models.model import Model
from ssdistill.train.task import Task

ACCELERATORS = ("cpu", "cuda", "xpu")
"""Types of devices whose processes can gather weights."""
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Formats in which autocast uses weights, by precision."""
CAST = (nn.Linear, nn.Conv2d)
"""Layers whose weights autocast brings to that format whenever they are used."""


def shard_teachers(task: Task, device: torch.device, precision: str) -> None:
    """Leave this process its part of each teacher of ``task``, on its device.

    Outputs stay the same to the bit: under autocast, weights that it would cast at every use are
    stored as it casts them. From here on all processes must encode by the teachers together.

    Args:
        device: of this process.
        precision: of the training, ``fp32``, ``bf16`` or ``fp16``.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (world_size(),))
    for teacher in task.teachers.values():
        if precision in HALF:
            store_as_cast(teacher, HALF[precision])
        for block in (*blocks_of(teacher).values(), teacher):
            fully_shard(cast("Any", block), mesh=mesh, reshard_after_forward=True)


def store_as_cast(network: nn.Module, dtype: torch.dtype) -> None:
    """Keep linear and convolutional weights of a frozen network in the format autocast uses."""
    for module in network.modules():
        # Subclasses may compute with their weights before autocast sees them.
        if type(module) in CAST:
            module.to(dtype)


def is_sharded(network: nn.Module) -> bool:
    """Whether this process holds a part of the network only."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # slow to import, and needless till then
    return fsdp is not None and isinstance(network, fsdp.FSDPModule)


def teacher_bytes(teacher: Encoder, processes: int, precision: str) -> int:
    """Return the bytes of a frozen teacher's weights on one of several processes.

    Its part of all weights and, while it encodes, those of the two largest blocks, one in use and
    the next being gathered. One process has all of them, in float32.
    """
    if processes == 1:
        return _bytes(teacher, "fp32")
    blocks = sorted(
        _bytes(block, precision) for block in blocks_of(cast("Model", teacher)).values()
    )
    return -(-_bytes(teacher, precision) // processes) + sum(blocks[-2:])


def _bytes(network: nn.Module, precision: str) -> int:
    """Bytes of the parameters as they are stored in shards."""
    total = sum(4 * p.numel() for p in network.parameters())
    if precision in HALF:
        cast_layers = (m for m in network.modules() if type(m) in CAST)
        total -= sum(2 * p.numel() for m in cast_layers for p in m.parameters(recurse=False))
    return total
