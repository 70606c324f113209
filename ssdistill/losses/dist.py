"""DIST: correlations within and across images (Huang et al., NeurIPS 2022, arXiv:2205.10536)."""

from torch import Tensor

from ssdistill.losses import Read, Shapes
from ssdistill.losses.base.relations import RelationHead, VectorRelation, standardized, vector_head
from ssdistill.settings import NonNegative, Positive


def correlation_distance(s_BD: Tensor, t_BD: Tensor) -> Tensor:
    """mean_b (1 - Pearson correlation of row b of both)."""
    return 1 - (standardized(s_BD) * standardized(t_BD)).sum(1).mean()


def relation_distances(s_BD: Tensor, t_BD: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """(inter, intra), times tau^2: over the rows and the columns of softmax(x / tau)."""
    s_BD, t_BD = (s_BD / tau).softmax(1), (t_BD / tau).softmax(1)
    inter, intra = correlation_distance(s_BD, t_BD), correlation_distance(s_BD.T, t_BD.T)
    return tau**2 * inter, tau**2 * intra


class DIST(VectorRelation):
    """Match softmax outputs by correlation, within each image and within each dimension.

    With y = softmax(x / tau), rho Pearson's correlation, rows b and columns d of both batches:

    L = tau^2 [beta mean_b (1 - rho(y^s_b, y^t_b)) + gamma mean_d (1 - rho(y^s_.d, y^t_.d))]

    (arXiv:2205.10536). There x are the logits of classes. Without labels
    x is the teacher's vector, whose coordinates take the part of classes, and the student's
    through a head as wide.

    ```yaml
    losses:
      relation: {kind: dist, tau: 1.0, weight: 2.0}
    ```

    Args:
        beta: weight of the relation among coordinates of one image.
        gamma: weight of the relation among images at one coordinate.
        tau: temperature.
        head: the student's: ``linear``, or ``mlp``, Linear-ReLU-Linear.
        read: the teacher's vector: ``embedding``, or ``projection`` of its self-supervised head.

    Raises:
        UserError: for ``read: projection`` and a teacher without one.
    """

    kind = "dist"
    paper = "Huang et al., NeurIPS 2022, arXiv:2205.10536"
    reads = "embedding"

    def __init__(
        self,
        shapes: Shapes,
        *,
        beta: NonNegative = 1.0,
        gamma: NonNegative = 1.0,
        tau: Positive = 1.0,
        head: RelationHead = "linear",
        read: Read = "embedding",
    ):
        super().__init__(shapes, read)
        self.beta, self.gamma, self.tau = beta, gamma, tau
        self.head = vector_head(shapes.student_dim, self.teacher_dim, head)

    def relation(self, s_BD: Tensor, t_BD: Tensor) -> Tensor:
        inter, intra = relation_distances(s_BD, t_BD, self.tau)
        return self.beta * inter + self.gamma * intra
