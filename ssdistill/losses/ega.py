"""EGA: embedding graph alignment (Ma et al., BMVC 2022, arXiv:2211.13264)."""

import torch
from torch import Tensor

from ssdistill.losses import Read, Shapes
from ssdistill.losses.base.relations import RelationHead, VectorRelation, standardized, vector_head
from ssdistill.settings import NonNegative


def graph_alignment(s_BD: Tensor, t_BD: Tensor) -> tuple[Tensor, Tensor]:
    """(node term |C_ts - I|_F, edge term |C_tt - C_ss|_F), C Pearson's correlation of rows."""
    s_BD, t_BD = standardized(s_BD), standardized(t_BD)
    identity_BB = torch.eye(len(s_BD), dtype=s_BD.dtype, device=s_BD.device)
    node = torch.linalg.matrix_norm(t_BD @ s_BD.T - identity_BB)
    edge = torch.linalg.matrix_norm(t_BD @ t_BD.T - s_BD @ s_BD.T)
    return node, edge


class EGA(VectorRelation):
    """Align the graphs of correlations between the images of a batch.

    L = w_n |C_ts - I|_F + w_e |C_tt - C_ss|_F, where C_ab holds Pearson's correlation of every
    vector of a with every one of b, over the coordinates, s being the student's vector through a
    head (arXiv:2211.13264). Neither norm is squared nor divided by the batch: L grows
    with B. The published code also narrows the teacher to 256 by a map that learns from
    labels alone; without labels the student is widened to the teacher instead.

    ```yaml
    losses:
      relation: {kind: ega, node_weight: 1.0, edge_weight: 0.3, weight: 0.8}
    ```

    Args:
        node_weight: w_n.
        edge_weight: w_e.
        head: the student's: ``linear``, or ``mlp``, Linear-ReLU-Linear.
        read: the teacher's vector: ``embedding``, or ``projection`` of its self-supervised head.

    Raises:
        UserError: for ``read: projection`` and a teacher without one.
    """

    kind = "ega"
    paper = "Ma et al., BMVC 2022, arXiv:2211.13264"
    reads = "embedding"

    def __init__(
        self,
        shapes: Shapes,
        *,
        node_weight: NonNegative = 1.0,
        edge_weight: NonNegative = 0.3,
        head: RelationHead = "linear",
        read: Read = "embedding",
    ):
        super().__init__(shapes, read)
        self.node_weight, self.edge_weight = node_weight, edge_weight
        self.head = vector_head(shapes.student_dim, self.teacher_dim, head)

    def relation(self, s_BD: Tensor, t_BD: Tensor) -> Tensor:
        node, edge = graph_alignment(s_BD, t_BD)
        return self.node_weight * node + self.edge_weight * edge
