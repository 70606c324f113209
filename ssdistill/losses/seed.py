"""SEED: the teacher's similarities to a queue (Fang et al., ICLR 2021, arXiv:2101.04731)."""

from torch import Tensor

from ssdistill.data.batch import Batch
from ssdistill.losses import Read, Shapes
from ssdistill.losses.base.similarity import QueueLoss
from ssdistill.models.heads import projector
from ssdistill.models.representation import Outputs
from ssdistill.settings import NonNegativeInt, Positive, PositiveInt


class SEED(QueueLoss):
    """Match the teacher's similarity distribution over a queue.

    L = -sum_k p_k log q_k, with p and q the softmax over [n(z)·n(t), n(z)·q_1, ..., n(z)·q_K] / T
    for z = t and z = MLP(s) (arXiv:2101.04731). Both see the same view; the teacher's
    vectors join the queue after scoring.

    Small patches, the last ``small_views`` of the pairs of views, have a queue of their own, which
    only the first of them joins: L = L(full-size views) + L(small patches), each a mean. The
    published code leaves the teacher's vectors of patches as they are, which is right for a
    teacher that normalizes its output; here they are always normalized.

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
        small_views: how many of the last pairs are small patches (paper: 6, of 96 pixels, by the
            view ``{recipe: multicrop_small, size: 96, count: 6}``).

    Raises:
        UserError: for ``read: projection`` and a teacher without one; at the first step, with
            no pair beside the small patches.
    """

    kind = "seed"
    paper = "Fang et al., ICLR 2021, arXiv:2101.04731"
    exact_under_sharding = True
    own = True
    kl = False

    def __init__(
        self,
        shapes: Shapes,
        *,
        queue: PositiveInt | None = None,
        temperature_student: Positive = 0.2,
        temperature_teacher: Positive = 0.01,
        read: Read = "embedding",
        center_teacher: bool = False,
        small_views: NonNegativeInt = 0,
    ):
        teacher = {"read": read, "center_teacher": center_teacher}
        super().__init__(shapes, temperature_student, temperature_teacher, **teacher)
        self.head = projector(shapes.student_dim, self.width)
        self.bank = self.make_bank(queue, teacher=self.width)
        self.small_views = small_views
        self.small_bank = self.make_bank(queue, teacher=self.width) if small_views else None

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        if self.small_bank is None:
            return super().forward(student, teacher, batch)
        full = len(student) - self.small_views
        if full < 1:
            raise self.fail(
                f"small_views={self.small_views} leaves no full-size view among {len(student)} "
                "pairs; lower small_views"
            )
        keys, s_ND = self.keys(teacher), self.queries(student)
        s_full_ND, s_small_ND = s_ND.tensor_split([full * len(keys[0])])
        loss = self.compare(s_full_ND, keys[:full], self.bank.teacher, self.bank)
        anchors_KD = self.small_bank.teacher
        loss = loss + self.compare(s_small_ND, keys[full:], anchors_KD, self.small_bank)
        for view in teacher.distinct:
            if view < full:
                self.bank.push(teacher=keys[view])
        self.small_bank.push(teacher=keys[full])
        return loss
