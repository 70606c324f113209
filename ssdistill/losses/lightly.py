"""Distillation as in lightly-train: a queue and, optionally, tokens (2025, no paper)."""

from typing import cast

import torch
from torch import Tensor, nn

from ssdistill.data.batch import Batch
from ssdistill.errors import UserError
from ssdistill.losses import Shapes
from ssdistill.losses.base.maps import MapChoice, MapLoss, MapNames, resize_map, tokens
from ssdistill.losses.base.similarity import QueueLoss, divergences, unit
from ssdistill.models.heads import map_regressor
from ssdistill.models.representation import Outputs
from ssdistill.settings import NonNegative, Positive, PositiveInt


def token_divergence(s_BNC: Tensor, t_BND: Tensor, temperature: float) -> Tensor:
    """Mean over images and tokens n of KL(softmax_m(t_n·t_m / T) || softmax_m(s_n·s_m / T)).

    Tokens are put to length 1, in float32; each network's among themselves.
    """
    with torch.autocast(s_BNC.device.type, enabled=False):
        s_BNC, t_BND = unit(s_BNC), unit(t_BND)
        logits = s_BNC @ s_BNC.mT / temperature, t_BND @ t_BND.mT / temperature
        return divergences(*logits).mean()


def small_weights(head: nn.Module) -> nn.Module:
    """Initialize the head's weights as lightly-train does."""
    nn.init.trunc_normal_(cast("Tensor", head.weight), std=0.02)
    return head


class Lightly(QueueLoss):
    """Match similarities to a queue that includes the current batch.

    L = KL(softmax(n(t)·Q / T) || softmax(n(W s + b)·Q / T)) + local_weight L_local, the teacher's
    vectors of the batch joining the queue Q, at first all zeros, before they are scored: the loss
    of CompRess with one queue (arXiv:2010.14713) but for that order, as the library lightly-train
    has it in its first method (local_weight 0) and its third, the default there (local_weight 1,
    maps final). L_local compares,
    for every position of a feature map, the softmax over its cosines to all positions of the same
    image; the student's map goes through a linear map of channels onto the teacher's grid. It
    needs the square of the number of positions in memory.

    The library mixes images pairwise before both networks see them, which is a setting of the
    training (``mix``) and not of this loss.

    ```yaml
    losses:
      similarity: {kind: lightly, queue: 4096, local_weight: 1.0, maps: final, weight: 1.0}
    ```

    Args:
        queue: keys kept; by default 4096, or half the training images if fewer (the library's
            default grows with the training set up to 8192).
        temperature: T of both networks.
        local_weight: weight of L_local; 0 reads no feature maps.
        temperature_local: T of L_local.
        maps: feature maps of L_local: ``last``, ``middle``, ``stages``, ``final`` or names.
        center_teacher: subtract the teacher's mean embedding first (not in the library).

    Raises:
        UserError: for ``local_weight`` above 0 and a network without those feature maps.
    """

    kind = "lightly"
    paper = "lightly-train, 2025, after Abbasi Koohpayegani et al., NeurIPS 2020, arXiv:2010.14713"
    reads = "embedding, maps"
    exact_under_sharding = True
    init = "zeros"

    def __init__(
        self,
        shapes: Shapes,
        *,
        queue: PositiveInt | None = None,
        temperature: Positive = 0.07,
        local_weight: NonNegative = 0.0,
        temperature_local: Positive = 0.07,
        maps: MapChoice | MapNames = "last",
        center_teacher: bool = False,
    ):
        super().__init__(shapes, temperature, temperature, center_teacher=center_teacher)
        self.head = small_weights(nn.Linear(shapes.student_dim, self.width))
        self.bank = self.make_bank(queue, teacher=self.width)
        self.local_weight = local_weight
        self.local = TokenSimilarity(shapes, maps, temperature_local) if local_weight else None
        if self.local is not None:
            self.student_taps = self.local.student_taps
            self.teacher_taps = self.local.teacher_taps

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        keys = self.keys(teacher)
        for view in teacher.distinct:
            self.bank.push(teacher=keys[view])
        loss = self.compare(self.queries(student), keys, self.bank.teacher, self.bank)
        if self.local is None:
            return loss
        return loss + self.local_weight * self.local(student, teacher, batch)


class TokenSimilarity(MapLoss):
    """L_local of :class:`Lightly`, averaged over pairs of maps and of views."""

    def __init__(self, shapes: Shapes, maps: MapChoice | MapNames, temperature: float):
        super().__init__(shapes, maps)
        self.temperature = temperature
        channels = [(pair.student_shape[0], pair.teacher_shape[0]) for pair in self.map_pairs]
        self.heads = nn.ModuleList(small_weights(map_regressor(*each)) for each in channels)

    def fail(self, reason: str) -> UserError:
        return UserError(f"lightly: {reason}; without maps, set local_weight=0")

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        losses = []
        for student_view, teacher_view in zip(student, teacher, strict=True):
            maps = self.pairs_of(student_view, teacher_view)
            for head, (s_BCHW, t_BDHW) in zip(self.heads, maps, strict=True):
                s_BDHW = resize_map(head(s_BCHW), t_BDHW.shape[-2:])
                losses.append(token_divergence(tokens(s_BDHW), tokens(t_BDHW), self.temperature))
        return torch.stack(losses).mean()
