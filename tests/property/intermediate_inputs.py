"""Inputs for the tests of the losses on attention and intermediate maps."""

import torch
from torch import Tensor

from ssdistill.data.batch import Batch
from ssdistill.losses import Loss, Shapes
from ssdistill.models.representation import Outputs
from ssdistill.settings.registry import LOSSES
from ssdistill.testing.synthetic import make_outputs, make_shapes

COUNT = 8


def build(kind: str, known: Shapes | None = None, **settings) -> Loss:
    torch.manual_seed(0)
    return LOSSES.build(LOSSES.schema(kind)(**settings), known or make_shapes()).train()


def batch() -> Batch:
    images = torch.zeros(COUNT, 1, 1, 3, dtype=torch.uint8)
    return Batch(images, torch.arange(COUNT), 0, 0, 2)


def make_inputs(loss: Loss) -> tuple[Outputs, Outputs]:
    torch.manual_seed(1)
    return make_outputs(loss, COUNT, loss.views)


def maps(seed: int = 0, channels: int = 6, side: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(COUNT, channels, side, side, generator=generator)


def near(value: Tensor, expected: Tensor, tolerance: float = 1e-5) -> bool:
    return torch.allclose(
        value, expected, rtol=tolerance, atol=tolerance * float(expected.detach().abs())
    )
