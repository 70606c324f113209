"""SwAV (Caron et al., NeurIPS 2020, arXiv:2006.09882)."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ssdistill.data.batch import Batch
from ssdistill.distributed import rank, world_size
from ssdistill.losses.base.bank import Bank
from ssdistill.losses.base.prototypes import sinkhorn
from ssdistill.models.backbones import Encoder
from ssdistill.models.heads import MLPSettings
from ssdistill.pretrain import Method
from ssdistill.settings import Fraction, NonNegativeInt, Positive, PositiveInt


class SwAVProjector(MLPSettings):
    hidden_dim: PositiveInt | None = 2048
    output_dim: PositiveInt = 128


class SwAV(Method):
    """Predict the prototype assignments of the image's full-size views (swapped prediction).

    L = mean over both full-size views i, all other views v and images of
    -sum_k q_ik log softmax(z_v.c / T)_k (eqs. 2 and 6), z and the prototypes c of unit length. The
    codes q_i come from ``sinkhorn_iterations`` of Sinkhorn-Knopp on exp(z_i.c / epsilon) over the
    images of all processes, so that view i uses all prototypes equally; no gradient passes them.

    A batch smaller than the number of prototypes hardly fills them. With a ``queue``, projections
    of earlier batches take part in the codes, once it is full. Prototypes are scaled back to unit
    length after every step.

    Views of one size pass the encoder's batch norms together, and views of all sizes those of the
    projector, as in the published code. The named recipe nearest to the paper's views differs in
    the smallest crop: 0.08 of the image's area, where the paper has 0.14.

    Args:
        temperature: T.
        epsilon: of Sinkhorn-Knopp; larger is softer.
        sinkhorn_iterations: of which more make the use of the prototypes more equal.
        num_prototypes: prototypes.
        queue: projections kept of each of the two full-size views; 0 for none.
        queue_start: fraction of the training after which the queue is used.
        freeze_prototypes: fraction of the training during which they do not learn.
        projector: the head whose output, scaled to unit length, is z.
    """

    kind = "swav"
    paper = "Caron et al., NeurIPS 2020, arXiv:2006.09882"
    recipes = ("simclr", "simclr")
    multicrop = True
    together = True

    def __init__(
        self,
        encoder: Encoder,
        *,
        temperature: Positive = 0.1,
        epsilon: Positive = 0.05,
        sinkhorn_iterations: PositiveInt = 3,
        num_prototypes: PositiveInt = 3000,
        queue: NonNegativeInt = 0,
        queue_start: Fraction = 0.075,
        freeze_prototypes: Fraction = 0.005,
        projector: SwAVProjector = SwAVProjector(),
    ):
        super().__init__(encoder)
        self.temperature, self.epsilon = temperature, epsilon
        self.sinkhorn_iterations = sinkhorn_iterations
        self.queue_start, self.freeze_prototypes = queue_start, freeze_prototypes
        self.projector = projector.build(encoder.embed_dim)
        width = projector.output_dim
        self.prototypes = nn.Linear(width, num_prototypes, bias=False)
        self._to_unit_length()
        self.queue = Bank(queue, "zeros", first=width, second=width) if queue else None

    def forward(self, views: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        z_NP = self.projector(torch.cat(self.embed(views)))
        # Cosines divided by T or epsilon need float32: bf16 resolves one only to about 0.004.
        with torch.autocast(z_NP.device.type, enabled=False):
            z_VBP = rearrange(F.normalize(z_NP.float(), dim=1), "(v b) p -> v b p", v=len(views))
            direction_KP = self.prototypes.weight
            if batch.step < self.freeze_prototypes * batch.num_steps:
                # No gradient at all, rather than one of zero, keeps them out of the optimizer.
                direction_KP = direction_KP.detach()
            cosine_VBK = z_VBP @ direction_KP.T
            code_FBK = self.codes(z_VBP.detach(), cosine_VBK.detach(), batch)
            return {self.kind: self.swapped_prediction(cosine_VBK, code_FBK)}

    def swapped_prediction(self, cosine_VBK: Tensor, code_FBK: Tensor) -> Tensor:
        """Cross-entropy between each full-size view's codes and every other view's prediction."""
        log_VBK = (cosine_VBK / self.temperature).log_softmax(-1)
        others_FBK = log_VBK.sum(0) - log_VBK[: len(code_FBK)]
        return -(code_FBK * others_FBK).sum(-1).mean() / (len(log_VBK) - 1)

    @torch.no_grad()
    def codes(self, z_VBP: Tensor, cosine_VBK: Tensor, batch: Batch) -> Tensor:
        """Compute q (F, B, K) of the F = 2 full-size views, then add these to the queue."""
        codes = []
        for number, cosine_BK in enumerate(cosine_VBK[: self.num_views]):
            rows_NK = torch.cat([cosine_BK, *self._queued(number, batch)])
            code_NK = sinkhorn(rows_NK, self.epsilon, self.sinkhorn_iterations)
            codes.append(code_NK[: len(cosine_BK)])
        if self.queue is not None and self.training:
            self.queue.push(first=z_VBP[0], second=z_VBP[1])
        return torch.stack(codes)

    def _queued(self, number: int, batch: Batch) -> list[Tensor]:
        """Cosines to the prototypes of queued projections of one full-size view, if in use."""
        if self.queue is None or batch.step < self.queue_start * batch.num_steps:
            return []
        if self.queue.pushed < self.queue.size:
            return []
        # All processes hold the same queue, and Sinkhorn-Knopp adds up what each of them brings.
        share_QP = self.queue[self.queue.names[number]][rank() :: world_size()]
        return [share_QP @ self.prototypes.weight.T]

    def after_step(self, step: int, num_steps: int) -> None:
        self._to_unit_length()

    @torch.no_grad()
    def _to_unit_length(self) -> None:
        weight_KP = self.prototypes.weight
        weight_KP.copy_(F.normalize(weight_KP, dim=1))
