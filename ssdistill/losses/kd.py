"""KD: soft targets (Hinton et al., 2015, arXiv:1503.02531), over pseudo-classes."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ssdistill.data.batch import Batch
from ssdistill.losses import Shapes
from ssdistill.losses.base.prototypes import LogitLoss, TeacherLogits, for_each_pair
from ssdistill.models.heads import LogitHead, logit_head
from ssdistill.models.representation import Outputs
from ssdistill.settings import Positive, PositiveInt


def softened_kl(s_BK: Tensor, t_BK: Tensor, temperature: float) -> Tensor:
    """T^2 mean_b KL(softmax(t / T) || softmax(s / T)), in float32."""
    log_q_BK = (s_BK.float() / temperature).log_softmax(1)
    log_p_BK = (t_BK.float() / temperature).log_softmax(1)
    return F.kl_div(log_q_BK, log_p_BK, log_target=True, reduction="batchmean") * temperature**2


class KD(LogitLoss):
    """Match softened probabilities over prototypes of the teacher's embedding.

    L = T^2 mean KL(softmax(t / T) || softmax(z / T)) over images and views, t the teacher's logits
    and z those of the student's own head (arXiv:1503.02531, sec. 2; the label term is omitted).
    Student and teacher see the same view.

    ```yaml
    losses:
      logits: {kind: kd, prototypes: 256, weight: 1.0}
    ```

    Args:
        temperature: T. By default 4, the paper's, for a ``projection``, and 1 for
            ``prototypes``, whose cosines ``scale`` has sharpened already.
        logits: the teacher's logits: cosines of its centered embedding to ``prototypes``, divided
            by ``scale``, or the ``projection`` of its self-supervised head as it is.
        prototypes: how many, K; at most as many as there are training images. By default 1024,
            or an eighth of the images if fewer.
        scale: of the cosines: the softmax of the targets sees cosine / (scale T). A head has to
            reach logits of 1 / scale, so lower T rather than scale for sharper targets.
        head: ``linear``, or ``mlp``, two layers with a ReLU between.

    Raises:
        UserError: ``logits: projection`` of a teacher without a head, or fewer than two classes.
    """

    kind = "kd"
    paper = "Hinton et al., NeurIPS Workshop 2014, arXiv:1503.02531"
    accumulates = True

    def __init__(
        self,
        shapes: Shapes,
        *,
        temperature: Positive | None = None,
        logits: TeacherLogits = "prototypes",
        prototypes: PositiveInt | None = None,
        scale: Positive = 0.08,
        head: LogitHead = "linear",
    ):
        super().__init__(shapes, logits, prototypes, scale)
        self.temperature = temperature or (4.0 if logits == "projection" else 1.0)
        self.head = logit_head(shapes.student_dim, self.num_logits, head)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        t_NK = torch.cat(for_each_pair(teacher, self.read, self.teacher_logits))
        s_NK = torch.cat(for_each_pair(student, "embedding", self.head))
        return self.compare(s_NK, t_NK)

    def compare(self, s_NK: Tensor, t_NK: Tensor) -> Tensor:
        """Return the loss between logits (N, K) of the two networks."""
        return softened_kl(s_NK, t_NK, self.temperature)
