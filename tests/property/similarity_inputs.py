"""Inputs for the tests of losses on distributions of similarities."""

import pytest
import torch
from torch import Tensor, nn

from ssdistill.data.batch import Batch
from ssdistill.losses import Shapes
from ssdistill.losses.base.similarity import QueueLoss
from ssdistill.losses.isd import ISD
from ssdistill.losses.ressl import ReSSL
from ssdistill.models.representation import Outputs, Representation

COUNT, WIDTH, QUEUE = 8, 16, 24
KNOWN = Shapes(WIDTH, WIDTH, num_samples=40)
BY_MOMENTUM = {
    "isd": lambda known: ISD(known, target="momentum"),
    "isd-projection": lambda known: ISD(known, target="momentum", projection_dim=6),
    "ressl": lambda known: ReSSL(known, target="momentum", dim=6),
}


def rows(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def outputs(*embeddings: Tensor, momentum: tuple[Tensor, ...] = ()) -> Outputs:
    views = [Representation(x_BD) for x_BD in embeddings]
    return Outputs(views, momentum=[Representation(x_BD) for x_BD in momentum])


def batch_of(step: int = 0) -> Batch:
    images = torch.zeros(COUNT, 1, 1, 3, dtype=torch.uint8)
    return Batch(images, torch.arange(COUNT), 0, step, 10)


def bare(loss: QueueLoss) -> QueueLoss:
    """The loss on the embeddings as they are."""
    loss.head = loss.predictor = nn.Identity()
    return loss


def near(value: Tensor, rel: float = 1e-5):
    return pytest.approx(float(value.detach()), rel=rel)
