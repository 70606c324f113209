"""Inputs for the tests of the relational losses."""

import torch
from torch import Tensor, nn

from ssdistill.data.batch import Batch
from ssdistill.losses import Loss
from ssdistill.losses.rkd import angle_difference, centered_gram, distance_difference
from ssdistill.models.representation import Outputs
from ssdistill.settings.registry import LOSSES
from ssdistill.testing.synthetic import make_outputs, make_shapes, mapped

COUNT = 8


def build(kind: str, **settings) -> Loss:
    """The loss between networks of one width, without heads."""
    torch.manual_seed(0)
    loss_of = LOSSES.build(LOSSES.schema(kind)(**settings), make_shapes(16, 16))
    loss_of.head = loss_of.teacher_head = nn.Identity()
    if hasattr(loss_of, "map_pairs"):
        loss_of.heads = nn.ModuleList(nn.Identity() for _ in loss_of.map_pairs)
    return loss_of


def batch_of(count: int = COUNT) -> Batch:
    return Batch(torch.zeros(count, 1, 1, 3, dtype=torch.uint8), torch.arange(count), 0, 0, 1)


def sides(loss_of: Loss) -> tuple[Outputs, Outputs]:
    torch.manual_seed(1)
    student, teacher = make_outputs(loss_of, COUNT, 1)
    return mapped(student, Tensor.detach), teacher


def value(loss_of: Loss, student: Outputs, teacher: Outputs) -> float:
    return float(loss_of(student, teacher, batch_of(len(student[0].embedding_BD))).detach())


def vector_pair(count: int = COUNT, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    torch.manual_seed(2)
    return torch.randn(count, 12, dtype=dtype), torch.randn(count, 12, dtype=dtype)


def map_pair(dtype: torch.dtype = torch.float64, side: int = 4) -> tuple[Tensor, Tensor]:
    torch.manual_seed(3)
    shape = (COUNT, 6, side, side)
    return torch.randn(shape, dtype=dtype), torch.randn(shape, dtype=dtype)


def token_pair(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return tuple(x.flatten(2).mT for x in map_pair(dtype))


def distance_and_angle(s_BD: Tensor, t_BD: Tensor, chunk: int) -> Tensor:
    """The two terms of RKD."""
    grams = centered_gram(s_BD), centered_gram(t_BD)
    return torch.stack([distance_difference(*grams), angle_difference(*grams, chunk)])
