"""ReSSL: a weak view's similarities to a queue (Zheng et al., NeurIPS 2021, arXiv:2107.09282)."""

from ssdistill.losses import Read, Shapes
from ssdistill.losses.base.similarity import Target, TargetLoss
from ssdistill.models.heads import projector
from ssdistill.settings import Fraction, Positive, PositiveInt


class ReSSL(TargetLoss):
    """From a strong view, match the weak view's similarities to a queue.

    L = -sum_k p_k log q_k, p = softmax(n(k)·Q / T_t), q = softmax(n(MLP(s))·Q / T_s), s of a
    strong view and k of a weak one, which joins the queue Q after scoring (arXiv:2107.09282). The
    paper distills a network into itself: k comes from the moving averages of network and MLP.
    Here the frozen teacher takes that place by default.

    ``views: [weak, strong]`` pair up as published with ``pairs: [[1, 0]]``. With ``target:
    momentum`` every view but the first learns from the one before it; set ``pairs: same``.

    ```yaml
    losses:
      similarity: {kind: ressl, pairs: [[1, 0]], weight: 1.0}
    ```

    Args:
        target: whose keys: ``teacher``, or ``momentum``, the student's moving average.
        queue: keys kept. By default 4096, or half the training images if fewer.
        temperature_student: T_s.
        temperature_teacher: T_t.
        hidden_dim: width of the MLP's hidden layer; null for that of the embedding.
        dim: width of the keys, for ``target: momentum``.
        momentum: of the moving averages, for ``target: momentum``.
        read: the teacher's vector: ``embedding``, or ``projection`` where it has kept one.
        center_teacher: subtract the teacher's mean first (not in the paper).

    Raises:
        UserError: for ``read: projection`` and a teacher without one; for ``target: momentum``
            with ``read`` or ``center_teacher``, or pairs that give the student a single view.
    """

    kind = "ressl"
    paper = "Zheng et al., NeurIPS 2021, arXiv:2107.09282"
    exact_under_sharding = True
    kl = False

    def __init__(
        self,
        shapes: Shapes,
        *,
        target: Target = "teacher",
        queue: PositiveInt | None = None,
        temperature_student: Positive = 0.1,
        temperature_teacher: Positive = 0.04,
        hidden_dim: PositiveInt | None = None,
        dim: PositiveInt = 256,
        momentum: Fraction = 0.99,
        read: Read = "embedding",
        center_teacher: bool = False,
    ):
        temperatures = temperature_student, temperature_teacher
        teacher = {"read": read, "center_teacher": center_teacher}
        super().__init__(shapes, target, momentum, *temperatures, **teacher)
        width = self.width if target == "teacher" else dim
        self.set_head(projector(shapes.student_dim, width, hidden_dim))
        self.bank = self.make_bank(queue, teacher=width)
