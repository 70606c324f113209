"""DINO with a frozen teacher (Caron et al., ICCV 2021; Siméoni et al., 2025)."""

import torch
from torch import Tensor

from ssdistill.data.batch import Batch
from ssdistill.losses import Shapes
from ssdistill.losses.base.assignments import Assigning, Targets
from ssdistill.losses.base.prototypes import (
    DINOHead,
    LogitLoss,
    TeacherLogits,
    for_each_pair,
)
from ssdistill.models.representation import Outputs
from ssdistill.settings import Fraction, Positive, PositiveInt


class DINO(Assigning, LogitLoss):
    """Cross-entropy between teacher and student cluster assignments of different views.

    L = mean over pairs of views and images of -sum_k p_k log softmax(h(s) / T_s)_k, h the
    student's own head, p the teacher's assignment: with ``targets: sinkhorn`` the result of three
    Sinkhorn-Knopp iterations on exp(logits / T_t) of all its views and all processes together
    (arXiv:2006.09882, eq. 3; arXiv:2508.10104), with ``centering`` softmax((logits - c) / T_t),
    c the moving average of the logits (arXiv:2104.14294, eq. 4). As in DINO, no view learns from
    itself and small crops have no teacher; a frozen teacher in place of the moving average is
    that of arXiv:2301.09451 and of the distilled DINOv3 models. Those read the teacher's own
    DINO head; here its kept head, if any, or prototypes of its embeddings stand in.

    ```yaml
    losses:
      assignment: {kind: dino, hidden_dim: 256, targets: sinkhorn, weight: 1.0}
    ```

    Args:
        logits: the teacher's logits: cosines of its centered embedding to ``prototypes``, or the
            ``projection`` of its self-supervised head as it is; the temperatures suit cosines.
        prototypes: how many, K; at most as many as there are training images. By default 1024,
            or an eighth of the images if fewer. DINO's heads have 65536 and more.
        targets: ``sinkhorn`` or ``centering``.
        temperature_student: T_s.
        temperature_start: T_t at the first step.
        temperature_teacher: T_t once the warm-up is over.
        temperature_warmup: fraction of the training over which T_t rises linearly.
        center_momentum: of the moving average c.
        hidden_dim: width of the two hidden layers of the student's head.
        bottleneck_dim: width of the space in which the head compares by cosine.

    Raises:
        UserError: ``logits: projection`` of a teacher without a head, or fewer than two classes.
    """

    kind = "dino"
    paper = "Caron et al., ICCV 2021, arXiv:2104.14294"
    pairing = "other"
    views = 2

    def __init__(
        self,
        shapes: Shapes,
        *,
        logits: TeacherLogits = "prototypes",
        prototypes: PositiveInt | None = None,
        targets: Targets = "sinkhorn",
        temperature_student: Positive = 0.1,
        temperature_start: Positive = 0.04,
        temperature_teacher: Positive = 0.07,
        temperature_warmup: Fraction = 0.3,
        center_momentum: Fraction = 0.9,
        hidden_dim: PositiveInt = 2048,
        bottleneck_dim: PositiveInt = 256,
    ):
        super().__init__(shapes, logits, prototypes)
        self.temperature_student = temperature_student
        temperatures = temperature_start, temperature_teacher
        count = self.num_logits
        self.set_assignments(targets, temperatures, temperature_warmup, center_momentum, count)
        self.head = DINOHead(shapes.student_dim, self.num_logits, hidden_dim, bottleneck_dim)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        temperature = self.temperature_at(batch.step, batch.num_steps)

        def assign(t_VD: Tensor) -> Tensor:
            return self.assign(self.teacher_logits(t_VD), temperature)

        def log_assign(s_VD: Tensor) -> Tensor:
            return (self.head(s_VD).float() / self.temperature_student).log_softmax(1)

        target_NK = torch.cat(for_each_pair(teacher, self.read, assign))
        log_NK = torch.cat(for_each_pair(student, "embedding", log_assign))
        return -(target_NK * log_NK).sum(1).mean()
