"""Relational losses: compare relations between outputs instead of the outputs themselves."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssdistill.data.batch import Batch
from ssdistill.distributed import gather_with_gradient
from ssdistill.losses import Loss, Read, Shapes, vectors
from ssdistill.losses.base.maps import MapChoice, MapLoss, MapNames
from ssdistill.models.heads import projector
from ssdistill.models.representation import Outputs

RelationHead = Literal["linear", "mlp"]
"""Heads without batch norm: its statistics would be those of one process, not of the batch."""


def vector_head(in_dim: int, out_dim: int, head: RelationHead) -> nn.Module:
    """Build the head: ``linear``, or ``mlp``, which is Linear-ReLU-Linear."""
    return nn.Linear(in_dim, out_dim) if head == "linear" else projector(in_dim, out_dim)


def whole_batch(x: Tensor) -> Tensor:
    """Gather the rows of all processes in float32; gradients flow back."""
    return gather_with_gradient(x.float())


def standardized(x_BD: Tensor) -> Tensor:
    """Scale rows to mean 0 and length 1: their products are Pearson correlations.

    Constant rows become 0.
    """
    return F.normalize(x_BD - x_BD.mean(1, keepdim=True), dim=1, eps=1e-8)


class VectorRelation(Loss):
    """Base class: compare relations between one vector per image, view by view.

    A subclass sets ``head`` or ``teacher_head`` where the vectors must have one width, and
    defines :meth:`relation`, which sees the batch of all processes.

    Raises:
        UserError: for ``read: projection`` and a teacher without one.
    """

    family = "relational"
    exact_under_sharding = True

    def __init__(self, shapes: Shapes, read: Read):
        super().__init__(shapes)
        self.read: Read = read
        self.teacher_dim = self.teacher_width(read)
        self.head: nn.Module = nn.Identity()
        self.teacher_head: nn.Module = nn.Identity()

    def relation(self, s_BD: Tensor, t_BD: Tensor) -> Tensor:
        """Return the loss of one view from float32 vectors, outside of autocast."""
        raise TypeError(f"{type(self).__name__} must define relation")

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        values = []
        for s_BD, t_BD in zip(vectors(student), vectors(teacher, self.read), strict=True):
            s_BD, t_BD = whole_batch(self.head(s_BD)), whole_batch(self.teacher_head(t_BD))
            with torch.autocast(s_BD.device.type, enabled=False):
                values.append(self.relation(s_BD, t_BD))
        return torch.stack(values).mean()


class MapRelation(MapLoss):
    """Base class: compare relations within or between feature maps, view by view.

    A subclass fills ``heads`` where both maps of a pair must have as many channels, and defines
    :meth:`compare`, or :meth:`relation` where it needs all pairs of maps at once. Both see the
    images of their own process.
    """

    family = "relational"
    exact_under_sharding = True

    def __init__(self, shapes: Shapes, maps: MapChoice | MapNames):
        super().__init__(shapes, maps)
        self.heads = nn.ModuleList(nn.Identity() for _ in self.map_pairs)

    def compare(self, s_BCHW: Tensor, t_BCHW: Tensor) -> Tensor:
        """Return the loss of one pair of maps in one view, in float32 outside of autocast."""
        raise TypeError(f"{type(self).__name__} must define compare")

    def relation(self, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Return the loss of one view: the sum over pairs of maps."""
        return torch.stack([self.compare(*pair) for pair in pairs]).sum()

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        values = []
        for view, target in zip(student, teacher, strict=True):
            pairs = [
                (head(s_BCHW).float(), t_BCHW.float())
                for head, (s_BCHW, t_BCHW) in zip(
                    self.heads, self.pairs_of(view, target), strict=True
                )
            ]
            with torch.autocast(pairs[0][0].device.type, enabled=False):
                values.append(self.relation(pairs))
        return torch.stack(values).mean()
