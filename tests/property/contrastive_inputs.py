"""Inputs for the tests of the contrastive losses."""

import copy
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ssdistill.data.batch import Batch
from ssdistill.losses import Loss, Shapes
from ssdistill.models.representation import Outputs, Representation
from ssdistill.testing.synthetic import make_outputs

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "losses.npz")
COUNT, WIDTH = 8, 16
KNOWN = Shapes(WIDTH, WIDTH, num_samples=40)


def number(name: str) -> Tensor:
    return torch.from_numpy(GOLDEN[name].copy())


def rows(*names: str, count: int = COUNT) -> list[Tensor]:
    """A random (count, WIDTH) tensor for each name, always the same one for the same name."""
    found = []
    for name in names:
        generator = torch.Generator().manual_seed(int.from_bytes(name.encode()) % 2**63)
        found.append(torch.randn(count, WIDTH, generator=generator))
    return found


def batch_of(index_B: Tensor | None = None, step: int = 0, epoch: int = 20) -> Batch:
    index_B = torch.arange(COUNT) if index_B is None else index_B
    images = torch.zeros(len(index_B), 1, 1, 3, dtype=torch.uint8)
    return Batch(images, index_B, epoch, step, 40, cutmix_fraction=0.7)


def outputs(*embeddings: Tensor, momentum: tuple[Tensor, ...] = (), **extra: Tensor) -> Outputs:
    return Outputs(
        [Representation(x_BD) for x_BD in embeddings],
        {name: Representation(x_BD) for name, x_BD in extra.items()},
        [Representation(x_BD) for x_BD in momentum],
    )


def headless(loss: Loss) -> Loss:
    for name in ("head", "key_head"):
        if hasattr(loss, name):
            setattr(loss, name, nn.Identity())
    if hasattr(loss, "heads"):
        loss.heads = nn.ModuleList(nn.Identity() for _ in loss.heads)
    return loss


def inputs(loss: Loss, views: int = 2) -> tuple[Outputs, Outputs]:
    torch.manual_seed(1)
    return make_outputs(loss, COUNT, views)


def value(loss: Loss, student: Outputs, teacher: Outputs) -> float:
    """Of a copy, so that no queue moves."""
    return float(copy.deepcopy(loss)(student, teacher, batch_of()).detach())
