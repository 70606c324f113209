"""MoCo v2 (He et al., arXiv:1911.05722; Chen et al., arXiv:2003.04297)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ssdistill.data.batch import Batch
from ssdistill.losses.base.bank import Bank
from ssdistill.losses.base.contrast import info_nce
from ssdistill.losses.base.similarity import unit
from ssdistill.models.backbones import Encoder
from ssdistill.models.ema import cosine_momentum, momentum_copy, update_momentum
from ssdistill.models.heads import BatchNorm, MLPSettings
from ssdistill.pretrain import Method
from ssdistill.settings import Fraction, Positive, PositiveInt


class MoCoProjector(MLPSettings):
    output_dim: PositiveInt = 128
    batch_norm: BatchNorm = "none"


class MoCo(Method):
    """InfoNCE of a view with a momentum network's key of the other view, against a queue.

    L = -log exp(q·k / T) / (exp(q·k / T) + sum_i exp(q·k_i / T)) (arXiv:1911.05722, eq. 1), with
    q of the first view, k the momentum network's of the second, both of length 1, and k_i the
    queue, which k joins after scoring. Projector, temperature and views are those of v2
    (arXiv:2003.04297); v3 is ``moco_v3``.

    Batch norms see ``bn_splits`` groups of the batch one by one, as if each were on a GPU of its
    own, and the momentum network's groups are drawn anew: statistics that query and key share
    would give the pair away (sec. 3.3, shuffling BN). Each process groups its own images; with
    several of them, ``bn_splits`` can be smaller. Networks without batch norm are not split.

    Args:
        temperature: T.
        queue: keys kept. More than there are images puts an image's own earlier keys among its
            negatives; configs for small data sets take fewer.
        momentum: of the key network at the first step.
        momentum_end: and at the last; a cosine leads there.
        symmetric: also let the second view find the first one's key, and average (not in the
            paper). The keys of both views join the queue.
        bn_splits: groups, the paper's 8 GPUs; fewer where a group would have under 2 images.
        projector: the head whose output, brought to length 1, is q; of its moving average, k.
    """

    kind = "moco"
    paper = "Chen et al., 2020, arXiv:2003.04297"
    recipes = ("strong", "strong")

    def __init__(
        self,
        encoder: Encoder,
        *,
        temperature: Positive = 0.2,
        queue: PositiveInt = 65536,
        momentum: Fraction = 0.999,
        momentum_end: Fraction = 0.999,
        symmetric: bool = False,
        bn_splits: PositiveInt = 8,
        projector: MoCoProjector = MoCoProjector(),
    ):
        super().__init__(encoder)
        self.temperature, self.symmetric = temperature, symmetric
        self.momentum, self.momentum_end = momentum, momentum_end
        self.projector = projector.build(encoder.embed_dim)
        self.target = momentum_copy(nn.ModuleList([encoder, self.projector]))
        self.bank = Bank(queue, key=projector.output_dim)
        normed = any(isinstance(module, _BatchNorm) for module in self.target.modules())
        self.bn_splits = bn_splits if normed else 1

    def forward(self, views: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        query_views, key_views = (views, views[::-1]) if self.symmetric else (views[:1], views[1:])
        queries = [self._project(self.projector, z_BD) for z_BD in self.embed(query_views)]
        keys = self._keys(key_views, batch.step)
        losses = [
            info_nce(q_BP, k_BP, self.bank.key, self.temperature)
            for q_BP, k_BP in zip(queries, keys, strict=True)
        ]
        self.bank.push(key=torch.cat(keys))
        return {self.kind: torch.stack(losses).mean()}

    @torch.no_grad()
    def _keys(self, views: Sequence[Tensor], step: int) -> list[Tensor]:
        """The momentum network's unit rows (B, P) of every view, encoded in shuffled groups."""
        encoder, projector = self.target
        # Drawn from the step alone, so that a resumed training draws the same groups.
        generator = torch.Generator().manual_seed(step)
        order_B = torch.randperm(len(views[0]), generator=generator).to(views[0].device)
        shuffled = self.embeddings(encoder, [view_BCHW[order_B] for view_BCHW in views])
        back_B = order_B.argsort()
        return [unit(self._project(projector, k_BD))[back_B] for k_BD in shuffled]

    def embeddings(self, encoder: nn.Module, views: Sequence[Tensor]) -> list[Tensor]:
        """Return the embedding (B, D) of every view, with batch-norm statistics per group."""
        return [
            torch.cat([encoder(part).embedding_BD for part in self._groups(view_BCHW)])
            for view_BCHW in views
        ]

    def _project(self, projector: nn.Module, z_BD: Tensor) -> Tensor:
        return torch.cat([projector(part) for part in self._groups(z_BD)])

    def _groups(self, rows: Tensor) -> tuple[Tensor, ...]:
        return rows.tensor_split(max(1, min(self.bn_splits, len(rows) // 2)))

    def after_step(self, step: int, num_steps: int) -> None:
        momentum = cosine_momentum(self.momentum, step, num_steps, self.momentum_end)
        update_momentum(nn.ModuleList([self.encoder, self.projector]), self.target, momentum)
