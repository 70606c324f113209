"""DKD: decoupled knowledge distillation (Zhao et al., CVPR 2022, arXiv:2203.08679)."""

import torch
from torch import Tensor

from ssdistill.losses import Shapes
from ssdistill.losses.base.prototypes import TeacherLogits
from ssdistill.losses.kd import KD, softened_kl
from ssdistill.models.heads import LogitHead
from ssdistill.settings import NonNegative, Positive, PositiveInt


def decoupled_kl(
    s_BK: Tensor, t_BK: Tensor, target_B: Tensor, alpha: float, beta: float, temperature: float
) -> Tensor:
    """alpha TCKD + beta NCKD, in float32 (arXiv:2203.08679, eq. 7).

    TCKD is the softened KL divergence between the two-way distributions (target class, any
    other), NCKD that between the distributions over the classes other than the target.
    """
    (s_B2, s_BK), (t_B2, t_BK) = (split_logits(x, target_B, temperature) for x in (s_BK, t_BK))
    target_part = softened_kl(s_B2, t_B2, temperature)
    return alpha * target_part + beta * softened_kl(s_BK, t_BK, temperature)


def split_logits(x_BK: Tensor, target_B: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return logits (B, 2) of the target and all others, and (B, K - 1) among the others."""
    x_BK, target_B1 = x_BK.float(), target_B[:, None]
    others_BK = torch.arange(x_BK.shape[1] - 1, device=x_BK.device).expand(len(x_BK), -1)
    others_BK = x_BK.gather(1, others_BK + (others_BK >= target_B1))
    together_B1 = temperature * (others_BK / temperature).logsumexp(1, keepdim=True)
    return torch.cat([x_BK.gather(1, target_B1), together_B1], 1), others_BK


class DKD(KD):
    """Decoupled KD: weigh the target prototype and all others separately.

    L = alpha TCKD + beta NCKD (arXiv:2203.08679, eq. 7), means over images and views: TCKD is
    T^2 KL between the probabilities (target, any other), NCKD T^2 KL between those of the others
    among themselves. The paper's target is the label; here it is the class the teacher
    gives most to, and the label term is omitted. Student and teacher see the same view.

    ```yaml
    losses:
      logits: {kind: dkd, alpha: 1.0, beta: 8.0, weight: 1.0}
    ```

    Args:
        alpha: weight of TCKD.
        beta: weight of NCKD. KD weights each image's by the teacher's probability of the others,
            which is least where the teacher is sure.
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

    kind = "dkd"
    paper = "Zhao et al., CVPR 2022, arXiv:2203.08679"
    accumulates = True

    def __init__(
        self,
        shapes: Shapes,
        *,
        alpha: NonNegative = 1.0,
        beta: NonNegative = 8.0,
        temperature: Positive | None = None,
        logits: TeacherLogits = "prototypes",
        prototypes: PositiveInt | None = None,
        scale: Positive = 0.08,
        head: LogitHead = "linear",
    ):
        super().__init__(
            shapes,
            temperature=temperature,
            logits=logits,
            prototypes=prototypes,
            scale=scale,
            head=head,
        )
        self.alpha, self.beta = alpha, beta

    def compare(self, s_NK: Tensor, t_NK: Tensor) -> Tensor:
        target_N = self.target_classes(t_NK)
        return decoupled_kl(s_NK, t_NK, target_N, self.alpha, self.beta, self.temperature)

    def target_classes(self, t_NK: Tensor) -> Tensor:
        """Return the class (N,) used as the label: the teacher's first choice."""
        return t_NK.argmax(1)
