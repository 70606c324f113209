"""SSKD: match similarities of rotated images to the batch (Xu et al., arXiv:2006.07114)."""

import torch
from torch import Tensor

from ssdistill.data.batch import Batch
from ssdistill.distributed import all_gather_rows, gather_with_gradient
from ssdistill.losses import Read, Shapes, vectors
from ssdistill.losses.base.similarity import SimilarityLoss, divergences, unit
from ssdistill.models.heads import projector
from ssdistill.models.representation import Outputs
from ssdistill.settings import Fraction, Positive

ROTATIONS = ("rotated_90", "rotated_180", "rotated_270")


def kept_rows(cosine_RB: Tensor, own_R: Tensor, ratio: float) -> Tensor:
    """(R,) bool: rows whose own image is the most similar, and a fraction of the others.

    Of those where images rank before it, ``ratio`` (rounded down) with the fewest are kept, in
    order of the rows among equals. ``own_R`` is the column of each row's own image.
    """
    own_R1 = cosine_RB.gather(1, own_R[:, None])
    rank_R = (cosine_RB > own_R1).sum(1)
    wrong = (rank_R > 0).sum()
    count = len(rank_R) - wrong + (wrong * ratio).floor()
    place_R = rank_R.argsort(stable=True).argsort()
    return place_R < count


def rotation_divergence(
    student_RB: Tensor, teacher_RB: Tensor, own_R: Tensor, temperature: float, ratio: float
) -> Tensor:
    """T^2 times the mean, over kept rows, of KL(softmax(teacher / T) || softmax(student / T)).

    Both are cosines of R rotated images with B upright ones, of which row r shows ``own_R[r]``.
    """
    kl_R = divergences(student_RB / temperature, teacher_RB / temperature)
    kept_R = kept_rows(teacher_RB, own_R, ratio)
    return temperature**2 * (kl_R * kept_R).sum() / kept_R.sum().clamp(min=1)


class SSKD(SimilarityLoss):
    """Match the similarities of rotated images to the images of the batch.

    L = T^2 mean_r KL(softmax_b(t_r·t_b / T) || softmax_b(z_r·z_b / T)), r the rotated and b the
    upright images of a batch, t = n(teacher), z = n(MLP(s)) (arXiv:2006.07114). Of the rotated
    images whose own upright one is not the teacher's most alike, those where it ranks worst are
    omitted. This is the paper's self-supervised term alone: the others need labels. The paper
    first trains a head on the teacher for the same task; here is no such stage, and the
    teacher's own embedding or projection is read.

    ```yaml
    losses:
      rotation: {kind: sskd, temperature: 0.5, ratio: 0.75, weight: 10.0}
    ```

    Args:
        temperature: T of both.
        ratio: fraction of the images that the teacher gets wrong that are kept all the same.
        read: the teacher's vector: ``embedding``, or ``projection`` where it has kept one.
        center_teacher: subtract the teacher's mean first (not in the paper).

    Raises:
        UserError: for ``read: projection`` and a teacher without one.
    """

    kind = "sskd"
    paper = "Xu et al., ECCV 2020, arXiv:2006.07114"
    paper_weight = 10.0
    extra_student = ROTATIONS
    extra_teacher = ROTATIONS
    exact_under_sharding = True

    def __init__(
        self,
        shapes: Shapes,
        *,
        temperature: Positive = 0.5,
        ratio: Fraction = 0.75,
        read: Read = "embedding",
        center_teacher: bool = False,
    ):
        super().__init__(shapes, read=read, center_teacher=center_teacher)
        self.temperature, self.ratio = temperature, ratio
        self.head = projector(shapes.student_dim, shapes.student_dim)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        s_views = vectors([*student, *(student.extra[name] for name in ROTATIONS)])
        s_views = self.head(torch.cat(s_views)).chunk(len(s_views))
        t_views = self.keys([*teacher, *(teacher.extra[name] for name in ROTATIONS)])
        with torch.autocast(s_views[0].device.type, enabled=False):
            s_views = [gather_with_gradient(unit(z_BD)) for z_BD in s_views]
            t_views = [all_gather_rows(t_BD) for t_BD in t_views]
            own_R = torch.arange(len(s_views[0]), device=s_views[0].device).repeat(len(ROTATIONS))
            turned_s_RD, turned_t_RD = (torch.cat(x[len(student) :]) for x in (s_views, t_views))
            losses = [
                rotation_divergence(
                    turned_s_RD @ s_BD.T, turned_t_RD @ t_BD.T, own_R, self.temperature, self.ratio
                )
                for s_BD, t_BD in zip(s_views[: len(student)], t_views[: len(student)], strict=True)
            ]
        return torch.stack(losses).mean()
