"""DoGo: similarity between two views of a batch (Bhat et al., CVPRW 2021, arXiv:2104.09866)."""

from itertools import combinations

import torch
from torch import Tensor, nn

from ssdistill.data.batch import Batch
from ssdistill.distributed import all_gather_rows, gather_with_gradient
from ssdistill.losses import Read, Shapes, vectors
from ssdistill.losses.base.similarity import SimilarityLoss, divergences, unit
from ssdistill.models.heads import projector
from ssdistill.models.representation import Outputs
from ssdistill.settings import Positive, PositiveInt


def view_divergence(
    s_BD: Tensor, other_s_BD: Tensor, t_BE: Tensor, other_t_BE: Tensor, temperature: float
) -> Tensor:
    """1/B mean_b KL(softmax_c(t_b·t'_c / T) || softmax_c(s_b·s'_c / T)) for rows of length 1.

    s' and t' are the other view; c runs over its images. The mean over all B x B terms, as in the
    published code, is B times less than the mean over images.
    """
    student_BB = s_BD @ other_s_BD.T / temperature
    teacher_BB = t_BE @ other_t_BE.T / temperature
    return divergences(student_BB, teacher_BB).mean() / len(student_BB)


class DoGo(SimilarityLoss):
    """Match the teacher's similarities between two views of a batch.

    L = 1/B^2 sum_b KL(softmax_c(t_b·t'_c / T) || softmax_c(z_b·z'_c / T)), b and c images of the
    batch in two views, t = n(teacher), z = n(MLP(s)); mean over the pairs of views
    (arXiv:2104.09866). Each network is compared in its own space, so the widths may differ. The
    paper trains two networks together, each with SimCLR's loss besides and the other as its
    teacher; here the teacher is trained already. As in the published code the mean is over
    B x B terms, hence the weight of 100 there.

    ```yaml
    losses:
      likeness: {kind: dogo, projection_dim: 128, weight: 100.0}
    ```

    Args:
        temperature: T of both.
        projection_dim: width of the student's MLP; null for none.
        read: the teacher's vector: ``embedding``, or ``projection`` where it has kept one.
        center_teacher: subtract the teacher's mean first (not in the paper).

    Raises:
        UserError: for ``read: projection`` and a teacher without one; at the first step, with
            fewer than two pairs of views.
    """

    kind = "dogo"
    paper = "Bhat et al., CVPR Workshops 2021, arXiv:2104.09866"
    paper_weight = 100.0
    views = 2
    exact_under_sharding = True
    minimum_at_teacher = True

    def __init__(
        self,
        shapes: Shapes,
        *,
        temperature: Positive = 0.1,
        projection_dim: PositiveInt | None = None,
        read: Read = "embedding",
        center_teacher: bool = False,
    ):
        super().__init__(shapes, read=read, center_teacher=center_teacher)
        self.temperature = temperature
        self.head = nn.Identity()
        if projection_dim:
            self.head = projector(shapes.student_dim, projection_dim)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        if len(student) < 2:
            raise self.fail("pairs name one pair of views, but the loss requires two; add a pair")
        student_views = self.head(torch.cat(vectors(student))).chunk(len(student))
        with torch.autocast(student_views[0].device.type, enabled=False):
            student_views = [gather_with_gradient(unit(s_BD)) for s_BD in student_views]
            teacher_views = [all_gather_rows(t_BD) for t_BD in self.keys(teacher)]
            losses = [
                view_divergence(
                    student_views[v],
                    student_views[w],
                    teacher_views[v],
                    teacher_views[w],
                    self.temperature,
                )
                for v, w in combinations(range(len(student_views)), 2)
            ]
        return torch.stack(losses).mean()
