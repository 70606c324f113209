"""CC: correlation congruence as coded (Peng et al., ICCV 2019, arXiv:1904.01802)."""

from torch import Tensor, nn

from ssdistill.losses import Read, Shapes
from ssdistill.losses.base.relations import VectorRelation
from ssdistill.settings import PositiveInt


def neighboring_differences(s_BD: Tensor, t_BD: Tensor) -> Tensor:
    """mean_i |s_i - t_i|·|s_(i+1) - t_(i+1)|, elementwise absolute values; B - 1 products."""
    difference_BD = (s_BD - t_BD).abs()
    return (difference_BD[:-1] * difference_BD[1:]).sum() / max(1, len(difference_BD) - 1)


class CC(VectorRelation):
    """Products of the student-teacher differences of consecutive images (as published in code).

    L = 1/(B - 1) sum_i |d_i|·|d_(i+1)|, d = W_s s + b_s - (W_t t + b_t), absolute values by
    element, both maps trained. This is what the code that the authors passed on
    computes, and it depends on the order of the batch. The paper (arXiv:1904.01802)
    compares k(s_i, s_j) with k(t_i, t_j) over all pairs instead, k a Gaussian kernel expanded
    in powers of the inner product.

    The loss vanishes where both maps are constant; another loss beside it, in the paper that of
    the labels, keeps the student from going there.

    ```yaml
    losses:
      correlation: {kind: cc, dim: 128, weight: 0.02}
      feature: {kind: simreg, weight: 1.0}
    ```

    Args:
        dim: width of the space in which the two are compared.
        read: the teacher's vector: ``embedding``, or ``projection`` of its self-supervised head.

    Raises:
        UserError: for ``read: projection`` and a teacher without one.
    """

    kind = "cc"
    paper = "Peng et al., ICCV 2019, arXiv:1904.01802"
    paper_weight = 0.02
    reads = "embedding"

    def __init__(self, shapes: Shapes, *, dim: PositiveInt = 128, read: Read = "embedding"):
        super().__init__(shapes, read)
        self.head = nn.Linear(shapes.student_dim, dim)
        self.teacher_head = nn.Linear(self.teacher_dim, dim)

    def relation(self, s_BD: Tensor, t_BD: Tensor) -> Tensor:
        return neighboring_differences(s_BD, t_BD)
