"""DisCo: MoCo for the student beside its teacher's vectors (Gao et al., arXiv:2104.09124)."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ssdistill.data.batch import Batch
from ssdistill.losses import Loss, Read, Shapes, vectors
from ssdistill.losses.base.bank import Bank, centering, default_queue_size
from ssdistill.losses.base.contrast import info_nce
from ssdistill.models.ema import momentum_copy, update_momentum
from ssdistill.models.heads import projector
from ssdistill.models.representation import Outputs
from ssdistill.settings import Fraction, NonNegative, Positive, PositiveInt

Reduction = Literal["mean", "sum"]


def squared_distances(s_ND: Tensor, t_ND: Tensor, reduction: Reduction) -> Tensor:
    """Mean or sum over the rows of |n(s) - n(t)|^2, n(x) = x / |x|, in float32."""
    with torch.autocast(s_ND.device.type, enabled=False):
        difference_ND = F.normalize(s_ND.float(), dim=1) - F.normalize(t_ND.float(), dim=1)
        squared_N = difference_ND.square().sum(1)
    return squared_N.mean() if reduction == "mean" else squared_N.sum()


class DisCo(Loss):
    """MoCo for the student plus regression of the teacher's embedding of every view.

    With z = MLP(s), k the same of the moving averages of student and MLP, and a queue of such k:

    L = InfoNCE(z_1, k_2, queue; T) + w (|n(z_1) - n(t_1)|^2 + |n(z_2) - n(t_2)|^2) / 2

    (arXiv:2104.09124), averaged over images. The keys k_2 join the queue after scoring. Of more
    than two views, each is contrasted with the next one's key, and the distances are averaged
    over all pairs.

    ```yaml
    losses:
      disco: {kind: disco, feature_weight: 64.0, weight: 1.0}
    ```

    Args:
        queue: keys kept (paper: 65536). By default 4096, or half the training images if fewer.
        temperature: T.
        hidden_dim: width of the MLP's hidden layer, the paper's remedy for a narrow student.
        momentum: of both moving averages.
        feature_weight: w. The authors' 1 times the sum over both views of the 32 images of each
            of their 8 GPUs is 64 times the mean.
        reduction: ``mean`` of the distances over images and pairs, or their ``sum``, as
            published, which grows with the images per process.
        read: the teacher's vector: ``embedding`` of the backbone, or ``projection`` of the
            self-supervised head it was trained with (the paper's), where it has kept one.
        center_teacher: subtract the teacher's mean first (not in the paper).

    Raises:
        UserError: for ``read: projection`` and a teacher without one, and for ``pairs`` that
            leave the student a single view.
    """

    kind = "disco"
    family = "contrastive"
    paper = "Gao et al., ECCV 2022, arXiv:2104.09124"
    reads = "embedding"
    pairing = "same"
    views = 2
    exact_under_sharding = True

    def __init__(
        self,
        shapes: Shapes,
        *,
        queue: PositiveInt | None = None,
        temperature: Positive = 0.2,
        hidden_dim: PositiveInt = 2048,
        momentum: Fraction = 0.999,
        feature_weight: NonNegative = 1.0,
        reduction: Reduction = "mean",
        read: Read = "embedding",
        center_teacher: bool = False,
    ):
        super().__init__(shapes)
        self.temperature, self.momentum = temperature, momentum
        self.read: Read = read
        self.feature_weight = feature_weight
        self.reduction: Reduction = reduction
        width = self.teacher_width(read)
        self.head = projector(shapes.student_dim, width, hidden_dim)
        self.key_head = momentum_copy(self.head)
        self.bank = Bank(queue or default_queue_size(shapes.num_samples), key=width)
        self.center = centering(center_teacher, width)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        views = student.distinct
        if len(views) < 2:
            raise self.fail(
                "pairs give the student one view, but the loss requires two; add a pair"
            )
        targets = torch.cat(self.center(vectors(teacher, self.read)))
        s_ND = self.head(torch.cat(vectors(student)))
        keys = self._keys(student, views[1:])

        z = s_ND.chunk(len(student))
        queries = torch.cat([z[view] for view in views[:-1]])
        loss = info_nce(queries, torch.cat(keys), self.bank["key"], self.temperature)
        distance = squared_distances(s_ND, targets, self.reduction)
        for k_BD in keys:
            self.bank.push(key=F.normalize(k_BD.float(), dim=1))
        return loss + self.feature_weight * distance

    @torch.no_grad()
    def _keys(self, student: Outputs, views: list[int]) -> list[Tensor]:
        moved = vectors([student.momentum[view] for view in views])
        return list(self.key_head(torch.cat(moved)).chunk(len(views)))

    def after_step(self, step: int, num_steps: int) -> None:
        """Update the moving average of the MLP, as the distiller updates the student's."""
        update_momentum(self.head, self.key_head, self.momentum_at(step, num_steps))
