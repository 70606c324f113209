"""BINGO: a student's image, its neighbor and their mixture (Xu et al., arXiv:2107.01691)."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ssdistill.data.batch import Batch
from ssdistill.losses import Loss, Read, Shapes, vectors
from ssdistill.losses.base.bank import Bank, centering, default_queue_size
from ssdistill.losses.base.contrast import info_nce_each
from ssdistill.models.heads import projector
from ssdistill.models.representation import Outputs
from ssdistill.settings import NonNegativeInt, Positive, PositiveInt


def bag_loss(
    queries: tuple[Tensor, Tensor, Tensor],
    keys: tuple[Tensor, Tensor],
    queue_KD: Tensor,
    temperature: float,
    own_weight: float,
    cutmix_fraction: float,
) -> Tensor:
    """1/3 sum over three queries of weight nce(query, key) + (1 - weight) nce(query, other key).

    Args:
        queries: of the image q, of its neighbor p and of the mixture of both, (B, D) each.
        keys: of the image k and of its neighbor k', (B, D) each.
        queue_KD: negatives of length 1.
        temperature: of the softmax.
        own_weight: weight of q's own key k, and of p's own k'.
        cutmix_fraction: weight of k for the mixture.
    """
    weights = (own_weight, 1 - own_weight, cutmix_fraction)
    losses = []
    for query_BD, weight in zip(queries, weights, strict=True):
        image, neighbor = info_nce_each(query_BD, keys, queue_KD, temperature)
        losses.append(weight * image + (1 - weight) * neighbor)
    return cast("Tensor", sum(losses)) / 3


class BINGO(Loss):
    """InfoNCE of an image, its teacher neighbor and their CutMix with both teacher keys.

    With nce(x, y) = -log exp(x·y/T) / (exp(x·y/T) + sum_k exp(x·q_k/T)) of vectors of length 1,
    q and k the student's and the teacher's of two views of an image, p and k' those of an image
    that the teacher finds like it, m the student's of q's and p's pixels, a fraction a of them q's:

    L = 1/3 [(nce(q, k) + nce(q, k')) / 2 + (nce(p, k) + nce(p, k')) / 2
    + a nce(m, k) + (1 - a) nce(m, k')]

    (arXiv:2107.01691). Of the first two terms only nce(q, k) and nce(p, k') are left, with weight
    1, in the first epochs. The keys k alone join the queue, after scoring. With several pairs of
    views (``pairs: other`` is the symmetric loss) L is averaged over them.

    ```yaml
    losses:
      bag: {kind: bingo, temperature: 0.2, weight: 1.0}
    ```

    Args:
        queue: keys kept (paper: 65536). By default 4096, or half the training images if fewer.
        temperature: T (paper: 0.12 for EfficientNets).
        hidden_dim: width of the hidden layer of the student's MLP.
        warmup_epochs: the first epochs, without the terms across image and neighbor. The
            published code omits them until ``epoch > 10`` holds, counted from 0.
        read: the teacher's vector: ``embedding`` of the backbone, or ``projection`` of the
            self-supervised head it was trained with (the paper's), where it has kept one.
        center_teacher: subtract the teacher's mean first (not in the paper).

    Raises:
        UserError: for ``read: projection`` and a teacher without one.
    """

    kind = "bingo"
    family = "contrastive"
    paper = "Xu et al., ICLR 2022, arXiv:2107.01691"
    reads = "embedding"
    pairing = ((0, 1),)
    views = 2
    extra_student = ("neighbor_0", "cutmix")
    extra_teacher = ("neighbor_1",)
    exact_under_sharding = True

    def __init__(
        self,
        shapes: Shapes,
        *,
        queue: PositiveInt | None = None,
        temperature: Positive = 0.2,
        hidden_dim: PositiveInt = 2048,
        warmup_epochs: NonNegativeInt = 11,
        read: Read = "embedding",
        center_teacher: bool = False,
    ):
        super().__init__(shapes)
        self.temperature, self.warmup_epochs = temperature, warmup_epochs
        self.read: Read = read
        width = self.teacher_width(read)
        self.head = projector(shapes.student_dim, width, hidden_dim)
        self.bank = Bank(queue or default_queue_size(shapes.num_samples), teacher=width)
        self.center = centering(center_teacher, width)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        *keys, neighbor_key_BD = self.center(
            vectors([*teacher, teacher.extra["neighbor_1"]], self.read)
        )
        student_views = vectors([*student, student.extra["neighbor_0"], student.extra["cutmix"]])
        *queries, neighbor_BD, mixed_BD = self.head(torch.cat(student_views)).chunk(
            len(student_views)
        )
        assert batch.cutmix_fraction is not None  # set with the view `cutmix`
        own_weight = 1.0 if batch.epoch < self.warmup_epochs else 0.5
        queue_KD = self.bank["teacher"]
        losses = [
            bag_loss(
                (query_BD, neighbor_BD, mixed_BD),
                (key_BD, neighbor_key_BD),
                queue_KD,
                self.temperature,
                own_weight,
                batch.cutmix_fraction,
            )
            for query_BD, key_BD in zip(queries, keys, strict=True)
        ]
        for view in teacher.distinct:
            self.bank.push(teacher=F.normalize(keys[view].float(), dim=1))
        return cast("Tensor", sum(losses)) / len(losses)
