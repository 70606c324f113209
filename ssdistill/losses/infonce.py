"""InfoNCE against a frozen teacher's keys (CPC, arXiv:1807.03748; MoCo, arXiv:1911.05722)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ssdistill.data.batch import Batch
from ssdistill.losses import Loss, Read, Shapes, vectors
from ssdistill.losses.base.bank import Bank, centering, default_queue_size
from ssdistill.losses.base.contrast import info_nce
from ssdistill.models.heads import projector
from ssdistill.models.representation import Outputs
from ssdistill.settings import Positive, PositiveInt


class InfoNCE(Loss):
    """InfoNCE of the student with the teacher's key of another view, against a queue.

    L = -log exp(n(MLP(s_v))·n(t_w)/T) / (exp(n(MLP(s_v))·n(t_w)/T) + sum_k exp(n(MLP(s_v))·q_k/T)),
    w another view than v, averaged over the pairs of views. The
    form is that of arXiv:1911.05722, eq. 1, with the frozen teacher as the key encoder, as in
    BINGO (arXiv:2107.01691) without its bags. The keys of all views join the queue after scoring.

    ```yaml
    losses:
      contrast: {kind: infonce, temperature: 0.2, weight: 1.0}
    ```

    Args:
        queue: keys kept. By default 4096, or half the training images if fewer.
        temperature: T.
        read: the teacher's vector: ``embedding`` of the backbone, or ``projection`` of the
            self-supervised head it was trained with, where it has kept one.
        center_teacher: subtract the teacher's mean first.

    Raises:
        UserError: for ``read: projection`` and a teacher without one.
    """

    kind = "infonce"
    family = "contrastive"
    paper = "He et al., CVPR 2020, arXiv:1911.05722"
    reads = "embedding"
    pairing = "other"
    views = 2
    exact_under_sharding = True

    def __init__(
        self,
        shapes: Shapes,
        *,
        queue: PositiveInt | None = None,
        temperature: Positive = 0.2,
        read: Read = "embedding",
        center_teacher: bool = False,
    ):
        super().__init__(shapes)
        self.temperature = temperature
        self.read: Read = read
        width = self.teacher_width(read)
        self.head = projector(shapes.student_dim, width)
        self.bank = Bank(queue or default_queue_size(shapes.num_samples), teacher=width)
        self.center = centering(center_teacher, width)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        keys = self.center(vectors(teacher, self.read))
        s_ND = self.head(torch.cat(vectors(student)))
        loss = info_nce(s_ND, torch.cat(keys), self.bank["teacher"], self.temperature)
        for view in teacher.distinct:
            self.bank.push(teacher=F.normalize(keys[view].float(), dim=1))
        return loss
