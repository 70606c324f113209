"""CaSSLe's distillation with a predictor (Fini et al., CVPR 2022, arXiv:2112.04215)."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from lightly.loss import BarlowTwinsLoss
from torch import Tensor

from ssdistill.data.batch import Batch
from ssdistill.distributed import all_gather_rows, gather_with_gradient
from ssdistill.losses import Loss, Read, Shapes, vectors
from ssdistill.losses.base.bank import centering
from ssdistill.models.heads import predictor
from ssdistill.models.representation import Outputs
from ssdistill.settings import NonNegative, Positive, PositiveInt

Pairs = Sequence[tuple[int, int]]


def contrastive(
    p_views: Sequence[Tensor], z_views: Sequence[Tensor], pairs: Pairs, temperature: float
) -> Tensor:
    """Cross entropy of p's cosines with all z and of z's with all p, averaged, in float32.

    Args:
        p_views, z_views: (B, D), all of the same images.
        pairs: (i, j): row b of ``p_views[i]`` and of ``z_views[j]`` belong together, and all the
            others are negatives, the image's own other views included.
        temperature: divides the cosines.
    """
    count = len(p_views[0])
    own_B = torch.arange(count, device=p_views[0].device)
    with torch.autocast(own_B.device.type, enabled=False):
        p_ND = F.normalize(torch.cat(tuple(p_views)).float(), dim=1)
        z_MD = F.normalize(torch.cat(tuple(z_views)).float(), dim=1)
        logits_NM = p_ND @ z_MD.T / temperature
        losses = []
        for i, j in pairs:
            losses.append(F.cross_entropy(logits_NM.split(count)[i], own_B + j * count))
            losses.append(F.cross_entropy(logits_NM.T.split(count)[j], own_B + i * count))
        return torch.stack(losses).mean()


def decorrelative(
    p_views: Sequence[Tensor], z_views: Sequence[Tensor], pairs: Pairs, off_diagonal: float
) -> Tensor:
    """sum_d (C_dd - 1)^2 + off_diagonal sum_{d != e} C_de^2, averaged over the pairs, in float32.

    C = correlations over the batch of p's and z's dimensions (Barlow Twins, arXiv:2103.03230).
    """
    barlow = BarlowTwinsLoss(off_diagonal)
    with torch.autocast(p_views[0].device.type, enabled=False):
        losses = [barlow(p_views[i].float(), z_views[j].float()) for i, j in pairs]
        return torch.stack(losses).mean()


def positions(outputs: Outputs) -> list[int]:
    """Return the index of each element among the distinct representations, from 0."""
    distinct = [id(outputs[view]) for view in outputs.distinct]
    return [distinct.index(id(representation)) for representation in outputs]


class CaSSLe(Loss):
    """InfoNCE with a predictor from student to teacher embedding.

    With p_v = MLP(s_v), for ``contrastive``, over all images and views in the batch:

    L = mean of -log softmax_z(n(p_v)·n(z)/T) at t_v and of -log softmax_p(n(t_v)·n(p)/T) at p_v

    and for ``barlow`` L = scale [sum_d (C_dd - 1)^2 + off_diagonal sum_{d != e} C_de^2] of the
    correlations C of p_v's and t_v's dimensions, averaged over the views (arXiv:2112.04215).
    The paper distills a network's own past, from its projection and beside the self-supervised
    loss; here the MLP starts from the embedding. Several processes share one set of vectors,
    as if they were one batch, but each has batch statistics of its own in the MLP.

    ```yaml
    losses:
      predict: {kind: cassle, variant: contrastive, temperature: 0.2, weight: 1.0}
    ```

    Args:
        variant: ``contrastive`` (the paper's beside SimCLR and MoCo) or ``barlow`` (beside Barlow
            Twins and VICReg).
        hidden_dim: width of the MLP's hidden layer.
        temperature: T of ``contrastive``.
        off_diagonal: of ``barlow``, weight of correlations between different dimensions.
        scale: of ``barlow``; that variant's default in the authors' distillation.
        read: the teacher's vector: ``embedding`` of the backbone, or ``projection`` of the
            self-supervised head it was trained with (the paper's), where it has kept one.
        center_teacher: subtract the teacher's mean first (not in the paper; changes nothing in
            ``barlow``, whose correlations do not see it).

    Raises:
        UserError: for ``read: projection`` and a teacher without one.
    """

    kind = "cassle"
    family = "contrastive"
    paper = "Fini et al., CVPR 2022, arXiv:2112.04215"
    reads = "embedding"
    pairing = "same"
    views = 2

    def __init__(
        self,
        shapes: Shapes,
        *,
        variant: Literal["contrastive", "barlow"] = "contrastive",
        hidden_dim: PositiveInt = 2048,
        temperature: Positive = 0.2,
        off_diagonal: NonNegative = 0.005,
        scale: Positive = 0.1,
        read: Read = "embedding",
        center_teacher: bool = False,
    ):
        super().__init__(shapes)
        self.variant, self.temperature = variant, temperature
        self.read: Read = read
        self.off_diagonal, self.scale = off_diagonal, scale
        width = self.teacher_width(read)
        self.head = predictor(shapes.student_dim, width, hidden_dim)
        self.center = centering(center_teacher, width)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        student_views = vectors([student[view] for view in student.distinct])
        teacher_views = vectors([teacher[view] for view in teacher.distinct], self.read)
        # A view at a time, as published: each has its own batch statistics.
        p_views = [gather_with_gradient(self.head(s_BD)) for s_BD in student_views]
        z_views = [all_gather_rows(t_BD) for t_BD in self.center(teacher_views)]
        pairs = list(zip(positions(student), positions(teacher), strict=True))
        if self.variant == "contrastive":
            return contrastive(p_views, z_views, pairs, self.temperature)
        return self.scale * decorrelative(p_views, z_views, pairs, self.off_diagonal)
