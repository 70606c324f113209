"""InfoNCE against a frozen teacher's keys (CPC, arXiv:1807.03748; MoCo, arXiv:1911.05722)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ssdistill.data.batch import Batch
from ssdistill.distill.bank import Bank, centring, default_queue_size
from ssdistill.losses import Loss, Shapes
from ssdistill.models.heads import projector
from ssdistill.models.representation import Representation
from ssdistill.settings import Positive, PositiveInt


def info_nce(s_BD: Tensor, t_BD: Tensor, queue_KD: Tensor, temperature: float) -> Tensor:
    """mean_b -log softmax([n(s)·n(t), n(s)·Q] / T)_0, n(x) = x / |x|, in float32.

    ``t_BD`` holds the positives; the rows of ``queue_KD``, the negatives, have length 1.
    """
    with torch.autocast(s_BD.device.type, enabled=False):
        s_BD, t_BD = F.normalize(s_BD.float(), dim=1), F.normalize(t_BD.float(), dim=1)
        positive_B1 = (s_BD * t_BD).sum(1, keepdim=True)
        logits_BK = torch.cat([positive_B1, s_BD @ queue_KD.T], 1) / temperature
        return F.cross_entropy(logits_BK, torch.zeros_like(logits_BK[:, 0], dtype=torch.int64))


class InfoNCE(Loss):
    """Among a queue of teacher keys, the student finds the teacher's key of the other view.

    L = -log exp(n(MLP(s_v))·n(t_w)/T) / (exp(n(MLP(s_v))·n(t_w)/T) + sum_k exp(n(MLP(s_v))·q_k/T)),
    w the view after v (two views: the other one; one view: the same), averaged over views. The
    form is that of arXiv:1911.05722, eq. 1, with the frozen teacher as the key encoder, as in
    BINGO (arXiv:2107.01691) without its bags. The keys of all views join the queue after scoring.

    ```yaml
    losses:
      contrast: {kind: infonce, temperature: 0.2, weight: 1.0}
    ```

    Args:
        queue: keys kept. By default 4096, or half the training images if fewer.
        temperature: T.
        center_teacher: subtract the teacher's mean embedding first.
    """

    kind = "infonce"
    family = "contrastive"
    paper = "He et al., CVPR 2020, arXiv:1911.05722"
    reads = "embedding"
    views = 2
    exact_under_sharding = True

    def __init__(
        self,
        shapes: Shapes,
        *,
        queue: PositiveInt | None = None,
        temperature: Positive = 0.2,
        center_teacher: bool = False,
    ):
        super().__init__(shapes)
        self.temperature = temperature
        self.head = projector(shapes.student_dim, shapes.teacher_dim)
        size = queue or default_queue_size(shapes.num_samples)
        self.bank = Bank(size, teacher=shapes.teacher_dim)
        self.centre = centring(center_teacher, shapes.teacher_dim)

    def forward(
        self, student: list[Representation], teacher: list[Representation], batch: Batch
    ) -> Tensor:
        keys = self.centre([r.embedding_BD for r in teacher])
        s_ND = self.head(torch.cat([r.embedding_BD for r in student]))
        positives = torch.cat([*keys[1:], keys[0]])
        loss = info_nce(s_ND, positives, self.bank["teacher"], self.temperature)
        for t_BD in keys:
            self.bank.push(teacher=F.normalize(t_BD.float(), dim=1))
        return loss
