"""SEED: the teacher's similarities to a queue (Fang et al., ICLR 2021, arXiv:2101.04731)."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ssdistill.data.batch import Batch
from ssdistill.distill.bank import Bank, centring, default_queue_size
from ssdistill.errors import UserError
from ssdistill.losses import Loss, Shapes
from ssdistill.models.heads import projector
from ssdistill.models.representation import Representation
from ssdistill.settings import Positive, PositiveInt


def similarity_cross_entropy(
    s_BD: Tensor,
    t_BD: Tensor,
    queue_KD: Tensor,
    temperature_student: float,
    temperature_teacher: float,
) -> Tensor:
    """mean_b -sum_k p_bk log q_bk over the image itself and K keys, in float32.

    p = softmax([1, n(t)·Q] / T_t), without gradient, and q = softmax([n(s)·n(t), n(s)·Q] / T_s),
    n(x) = x / |x|; the rows of ``queue_KD`` have length 1.
    """
    with torch.autocast(s_BD.device.type, enabled=False):
        s_BD, t_BD = F.normalize(s_BD.float(), dim=1), F.normalize(t_BD.float(), dim=1)
        own_B1 = (s_BD * t_BD).sum(1, keepdim=True)
        logits_BK = torch.cat([own_B1, s_BD @ queue_KD.T], 1) / temperature_student
        target_BK = torch.cat([torch.ones_like(own_B1), t_BD @ queue_KD.T], 1)
        target_BK = (target_BK.detach() / temperature_teacher).softmax(1)
        return F.cross_entropy(logits_BK, target_BK)


class SEED(Loss):
    """The student ranks a queue of the teacher's keys as the teacher does.

    L = -sum_k p_k log q_k, with p and q the softmax over [n(z)·n(t), n(z)·q_1, ..., n(z)·q_K] / T
    for z = t and z = MLP(s) (arXiv:2101.04731). Both see the same view; the teacher's
    vectors join the queue after scoring.

    ```yaml
    losses:
      similarity: {kind: seed, queue: 4096, temperature_teacher: 0.01, weight: 1.0}
    ```

    Args:
        queue: keys kept (paper: 65536). By default 4096, or half the training images if fewer.
        temperature_student: T of the student's distribution.
        temperature_teacher: T of the teacher's. The published code's default, 1e-4, leaves all
            weight on the image itself (cosine 1) unless a key's cosine exceeds about 0.9995,
            which makes the loss InfoNCE with the teacher's vector as the positive. At 0.01 a key
            of cosine 0.97 has 5 % of the weight of the image itself.
        read: the teacher's vector: ``embedding`` of the backbone, or ``projection`` of the
            self-supervised head it was trained with (the paper's), where it has kept one.
        center_teacher: subtract the teacher's mean first (not in the paper).

    Raises:
        UserError: for ``read: projection`` and a teacher without one.
    """

    kind = "seed"
    family = "similarity distribution"
    paper = "Fang et al., ICLR 2021, arXiv:2101.04731"
    reads = "embedding"
    views = 1
    exact_under_sharding = True

    def __init__(
        self,
        shapes: Shapes,
        *,
        queue: PositiveInt | None = None,
        temperature_student: Positive = 0.2,
        temperature_teacher: Positive = 0.01,
        read: Literal["embedding", "projection"] = "embedding",
        center_teacher: bool = False,
    ):
        super().__init__(shapes)
        self.reads = read
        dims = {"embedding": shapes.teacher_dim, "projection": shapes.teacher_projection_dim}
        width = dims[read]
        if width is None:
            raise UserError("seed: the teacher has no projection head; set read=embedding")
        self.temperature_student = temperature_student
        self.temperature_teacher = temperature_teacher
        self.head = projector(shapes.student_dim, width)
        self.bank = Bank(queue or default_queue_size(shapes.num_samples), teacher=width)
        self.centre = centring(center_teacher, width)

    def forward(
        self, student: list[Representation], teacher: list[Representation], batch: Batch
    ) -> Tensor:
        targets = self.centre(
            [r.embedding_BD if self.reads == "embedding" else r.projection_BP for r in teacher]
        )
        loss = similarity_cross_entropy(
            self.head(torch.cat([r.embedding_BD for r in student])),
            torch.cat(targets),
            self.bank["teacher"],
            self.temperature_student,
            self.temperature_teacher,
        )
        for t_BD in targets:
            self.bank.push(teacher=F.normalize(t_BD.float(), dim=1))
        return loss
