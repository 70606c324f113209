"""DINO (Caron et al., ICCV 2021, arXiv:2104.14294)."""

from collections.abc import Sequence
from typing import Literal, cast

import torch
import torch.nn.functional as F
from lightly.models.modules.heads import ProjectionHead
from torch import Tensor, nn

from ssdistill.data.batch import Batch
from ssdistill.distributed import mean_over_processes
from ssdistill.losses.base.prototypes import sinkhorn
from ssdistill.models.backbones import Encoder
from ssdistill.models.ema import cosine_momentum, momentum_copy, update_momentum
from ssdistill.models.heads import BatchNorm, MLPSettings
from ssdistill.pretrain import Method
from ssdistill.settings import Fraction, Positive, PositiveInt


class DINOProjector(MLPSettings):
    """Linear layers with GELUs instead of ReLUs; weights start at N(0, 0.02²)."""

    hidden_dim: PositiveInt | None = 2048
    output_dim: PositiveInt = 256
    depth: PositiveInt = 3
    batch_norm: BatchNorm = "none"

    def build(self, input_dim: int, output_dim: int | None = None) -> ProjectionHead:
        head = super().build(input_dim, output_dim)
        for number, layer in enumerate(head.layers):
            if isinstance(layer, nn.ReLU):
                head.layers[number] = nn.GELU()
            elif isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        return head


class DINO(Method):
    """Match a momentum teacher's cluster assignments of other views (self-distillation).

    L = mean over pairs of different views of -sum_k p_k log softmax(s / T_s)_k (eq. 2), s and t
    the cosines of the student's projection of any view and the teacher's of one of the two of
    full size to learned prototypes; p = softmax((t - c) / T_t), c the moving average of t over
    the teacher's views and all processes, which a batch moves after its own loss (eq. 4). The
    teacher's momentum rises from ``momentum`` to ``momentum_end`` by a cosine and covers
    batch-norm statistics. Views of one size share a forward pass, and its batch statistics, in
    both networks; the teacher's batch norms are in training mode like the student's. The kept
    projector ends before the normalization to unit length. The paper's schedule of the weight
    decay is ``optim: {weight_decay: 0.04, weight_decay_end: 0.4}``.

    Args:
        num_prototypes: K; small data sets do with far fewer.
        temperature_student: T_s.
        temperature_teacher: T_t after its warm-up; the published code starts from 0.04, the
            paper's ViTs end at 0.07.
        temperature_teacher_start: T_t at the first step.
        temperature_warmup: fraction of the training over which T_t goes linearly from the one to
            the other.
        centering: ``center`` as above, or ``sinkhorn``: p is the result of three Sinkhorn-Knopp
            iterations on exp(t / T_t), as in DINOv2 (arXiv:2304.07193).
        center_momentum: of c.
        momentum: of the teacher at the first step.
        momentum_end: and at the last.
        freeze_last: fraction of the training, from its start, in which the prototypes stay fixed;
            the paper's is the first of 100 epochs.
        projector: the layers between the embedding and the space of the prototypes.
    """

    kind = "dino"
    paper = "Caron et al., ICCV 2021, arXiv:2104.14294"
    recipes = ("byol_a", "byol_b")
    multicrop = True
    together = True

    center_K: Tensor

    def __init__(
        self,
        encoder: Encoder,
        *,
        num_prototypes: PositiveInt = 65536,
        temperature_student: Positive = 0.1,
        temperature_teacher: Positive = 0.04,
        temperature_teacher_start: Positive = 0.04,
        temperature_warmup: Fraction = 0.1,
        centering: Literal["center", "sinkhorn"] = "center",
        center_momentum: Fraction = 0.9,
        momentum: Fraction = 0.996,
        momentum_end: Fraction = 1.0,
        freeze_last: Fraction = 0.01,
        projector: DINOProjector = DINOProjector(),
    ):
        super().__init__(encoder)
        self.temperature_student = temperature_student
        self.temperatures = temperature_teacher_start, temperature_teacher
        self.temperature_warmup, self.freeze_last = temperature_warmup, freeze_last
        self.centering, self.center_momentum = centering, center_momentum
        self.momentum, self.momentum_end = momentum, momentum_end
        self.projector = projector.build(encoder.embed_dim)
        self.prototypes = nn.Linear(projector.output_dim, num_prototypes, bias=False)
        self.teacher = momentum_copy(self._student())
        if centering == "center":
            self.register_buffer("center_K", torch.zeros(num_prototypes))

    def _student(self) -> nn.ModuleList:
        return nn.ModuleList([self.encoder, self.projector, self.prototypes])

    @property
    def exported(self) -> tuple[Encoder, nn.Module]:
        """The momentum teacher's, which outperforms the student throughout (sec. 5.2)."""
        encoder, projector, _ = self.teacher
        return cast("Encoder", encoder), projector

    def forward(self, views: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        direction_KP = self.prototypes.weight
        if batch.step < self.freeze_last * batch.num_steps:
            direction_KP = direction_KP.detach()
        logits_VK = cosines(self.projector(torch.cat(self.embed(views))), direction_KP)
        log_VK = (logits_VK / self.temperature_student).log_softmax(1).chunk(len(views))
        full_size = views[: len(self.recipes)]
        target_VK = self.targets(full_size, self.temperature_at(batch.step, batch.num_steps))
        terms = [
            -(p_BK * log_BK).sum(1).mean()
            for teacher_view, p_BK in enumerate(target_VK.chunk(len(full_size)))
            for student_view, log_BK in enumerate(log_VK)
            if student_view != teacher_view
        ]
        return {self.kind: torch.stack(terms).mean()}

    @torch.no_grad()
    def targets(self, views: Sequence[Tensor], temperature: float) -> Tensor:
        """The teacher's assignments (V, K), in float32, of all ``views``; moves the center."""
        encoder, projector, prototypes = self.teacher
        z_VP = projector(torch.cat(self.embeddings(encoder, views)))
        logits_VK = cosines(z_VP, cast("nn.Linear", prototypes).weight)
        if self.centering == "sinkhorn":
            return sinkhorn(logits_VK, temperature)
        target_VK = ((logits_VK - self.center_K) / temperature).softmax(1)
        if self.training:
            mean_K = mean_over_processes(logits_VK.mean(0))
            self.center_K.lerp_(mean_K, 1 - self.center_momentum)
        return target_VK

    def temperature_at(self, step: int, num_steps: int) -> float:
        """Return T_t at step ``step`` (from 0) of ``num_steps``."""
        first, last = self.temperatures
        warmup_steps = self.temperature_warmup * num_steps
        return last if step >= warmup_steps else first + (last - first) * step / warmup_steps

    def after_step(self, step: int, num_steps: int) -> None:
        momentum = cosine_momentum(self.momentum, step, num_steps, self.momentum_end)
        update_momentum(self._student(), self.teacher, momentum)


def cosines(z_BP: Tensor, direction_KP: Tensor) -> Tensor:
    """Cosine (B, K) of each row to each direction.

    In float32: over a temperature of 0.04, the rounding of bf16 would be a tenth of a logit.
    Dividing by the length is the weight normalization of the paper's last layer.
    """
    with torch.autocast(z_BP.device.type, enabled=False):
        return F.normalize(z_BP.float(), dim=1) @ F.normalize(direction_KP.float(), dim=1).T
