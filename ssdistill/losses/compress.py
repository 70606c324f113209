"""CompRess: similarities to a queue, for each network in its own space (arXiv:2010.14713)."""

from typing import Literal

from torch import Tensor, nn

from ssdistill.data.batch import Batch
from ssdistill.losses import Shapes, vectors
from ssdistill.losses.base.similarity import QueueLoss, unit
from ssdistill.models.representation import Outputs
from ssdistill.settings import Fraction, Positive, PositiveInt


class CompRess(QueueLoss):
    """Match similarity distributions over a queue, each network in its own space.

    L = KL(softmax(n(t)·A_t / T) || softmax(n(s)·A_s / T)) over a queue of images, the image itself
    not among them (arXiv:2010.14713). A_t holds the teacher's vectors of these images and A_s the
    student's, row for row; both join after scoring. No head, so the widths may differ.

    ```yaml
    losses:
      similarity: {kind: compress, variant: 2q_momentum, queue: 4096, weight: 1.0}
    ```

    Args:
        variant: ``2q``, two queues, as above; ``2q_momentum``, where the student's queue holds
            vectors of its moving average, as in the published training script; ``1q``, where
            A_s is A_t and the student goes through a linear map to the teacher's width.
        queue: images kept (paper: 128000). By default 4096, or half the training images if fewer.
        temperature: T of both.
        momentum: of the moving average, for ``2q_momentum``.
        center_teacher: subtract the teacher's mean embedding first (not in the paper).
    """

    kind = "compress"
    paper = "Abbasi Koohpayegani et al., NeurIPS 2020, arXiv:2010.14713"
    exact_under_sharding = True
    init = "uniform"

    def __init__(
        self,
        shapes: Shapes,
        *,
        variant: Literal["1q", "2q", "2q_momentum"] = "2q_momentum",
        queue: PositiveInt | None = None,
        temperature: Positive = 0.04,
        momentum: Fraction = 0.999,
        center_teacher: bool = False,
    ):
        super().__init__(shapes, temperature, temperature, center_teacher=center_teacher)
        widths = {"teacher": self.width}
        if variant == "1q":
            self.head = nn.Linear(shapes.student_dim, self.width)
        else:
            self.head = nn.Identity()
            widths["student"] = shapes.student_dim
        self.bank = self.make_bank(queue, **widths)
        if variant == "2q_momentum":
            self.momentum = momentum

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        if "student" not in self.bank.names:
            return super().forward(student, teacher, batch)
        keys, anchors_KD = self.keys(teacher), self.bank.student
        loss = self.compare(self.queries(student), keys, anchors_KD, self.bank)
        student_views = vectors(student if self.momentum is None else student.momentum)
        for view in teacher.distinct:
            self.bank.push(teacher=keys[view], student=unit(student_views[view]))
        return loss
