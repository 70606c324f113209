"""ISD: similarities to a queue from another view (Tejankar et al., ICCV 2021, arXiv:2012.09259)."""

from collections.abc import Sequence

from torch import Tensor, nn

from ssdistill.losses import Read, Shapes
from ssdistill.losses.base.similarity import Target, TargetLoss
from ssdistill.models.heads import predictor
from ssdistill.models.representation import Representation
from ssdistill.settings import Fraction, Positive, PositiveInt


class ISD(TargetLoss):
    """Match another view's similarities to a queue, through a predictor.

    L = KL(softmax(n(k)·Q / T_t) || softmax(n(MLP(s))·Q / T_s)), s of one view and k of the
    other; k joins the queue Q after scoring (arXiv:2012.09259). The paper distills a network into
    itself: k comes from its moving average. Here the frozen teacher takes that place by default.

    ISD+ of the authors' code: a weak view for the key and a strong one for the query (``views:
    [weak, strong]``), a projection a quarter as wide as the embedding, temperatures 0.1 and 0.01.
    With ``target: momentum`` every view but the first learns from the one before it (set ``pairs:
    same``); with the teacher ``pairs: [[1, 0]]`` does the same for two. The rows of ISD's
    first queue have length sqrt(width / queue) in the published code; here, as in ISD+, 1.

    ```yaml
    losses:
      similarity: {kind: isd, temperature_student: 0.1, temperature_teacher: 0.01,
                   pairs: [[1, 0]], weight: 1.0}
    ```

    Args:
        target: whose keys: ``teacher``, or ``momentum``, the student's moving average.
        queue: keys kept (paper: 128000). By default 4096, or half the training images if fewer.
        temperature_student: T_s.
        temperature_teacher: T_t.
        projection_dim: width of an MLP between embedding and prediction, which with ``momentum``
            the keys go through as well, on its moving average; null for none (ISD).
        momentum: of the moving averages, for ``target: momentum`` (ISD+: 0.99).
        read: the teacher's vector: ``embedding``, or ``projection`` where it has kept one.
        center_teacher: subtract the teacher's mean first (not in the paper).

    Raises:
        UserError: for ``read: projection`` and a teacher without one; for ``target: momentum``
            with ``read`` or ``center_teacher``, or pairs that give the student a single view.
    """

    kind = "isd"
    paper = "Tejankar et al., ICCV 2021, arXiv:2012.09259"

    def __init__(
        self,
        shapes: Shapes,
        *,
        target: Target = "teacher",
        queue: PositiveInt | None = None,
        temperature_student: Positive = 0.02,
        temperature_teacher: Positive = 0.02,
        projection_dim: PositiveInt | None = None,
        momentum: Fraction = 0.999,
        read: Read = "embedding",
        center_teacher: bool = False,
    ):
        temperatures = temperature_student, temperature_teacher
        teacher = {"read": read, "center_teacher": center_teacher}
        super().__init__(shapes, target, momentum, *temperatures, **teacher)
        dim = projection_dim or shapes.student_dim
        hidden_dim = shapes.student_dim * (2 if projection_dim else 1)
        self.set_head(
            predictor(shapes.student_dim, dim, hidden_dim) if projection_dim else nn.Identity()
        )
        width = self.width if target == "teacher" else dim
        self.predictor = predictor(dim, width, hidden_dim)
        self.bank = self.make_bank(queue, teacher=width)

    def queries(self, student: Sequence[Representation]) -> Tensor:
        return self.predictor(super().queries(student))
