"""CosPress: a map of the teacher's tokens that keeps cosines (Mannix et al., TMLR 2025)."""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ssdistill.data.batch import Batch
from ssdistill.distributed import gather_with_gradient
from ssdistill.losses import Shapes
from ssdistill.losses.base.maps import MapLoss, resize_map, tokens
from ssdistill.losses.base.similarity import unit
from ssdistill.models.representation import Outputs
from ssdistill.settings import Positive

Compared = Literal["full", "half"]
Temperatures = Annotated[tuple[Positive, ...], Field(min_length=1)]
TEMPERATURES = tuple(round(0.01 * (i + 1), 2) for i in range(10))
MASKED = -1e8
"""Cosine of a vector with itself, which is no neighbor of its own."""


def neighbor_divergence(
    t_BND: Tensor, h_BNC: Tensor, temperatures: tuple[float, ...], compared: Compared
) -> Tensor:
    """How far the neighbors of h are from those of t, (B,), mean over temperatures.

    Neighbors are softmax(cosine / T) over the other vectors of the same set. ``half``: mean over
    vectors of KL(p || q). ``full``: one KL(P || Q) of all pairs, P and Q symmetric and of sum 1.

    Args:
        t_BND, h_BNC: B sets of N vectors, in float32.
    """
    log_p_TBNN, log_q_TBNN = (
        _log_neighbors(x_BNX, temperatures, compared) for x_BNX in (t_BND, h_BNC)
    )
    divergence_TBNN = log_p_TBNN.exp() * (log_p_TBNN - log_q_TBNN)
    # Of a vector with itself both are exp(-1e8 / T) = 0.
    itself_NN = torch.eye(t_BND.shape[1], dtype=torch.bool, device=t_BND.device)
    divergence_TBN = divergence_TBNN.masked_fill(itself_NN, 0.0).sum(-1)
    return (divergence_TBN.sum(-1) if compared == "full" else divergence_TBN.mean(-1)).mean(0)


def _log_neighbors(x_BNX: Tensor, temperatures: tuple[float, ...], compared: Compared) -> Tensor:
    """Logarithms (T, B, N, N) of the probabilities of neighbors."""
    x_BNX = unit(x_BNX)
    itself_NN = torch.eye(x_BNX.shape[1], dtype=torch.bool, device=x_BNX.device)
    cosine_BNN = (x_BNX @ x_BNX.mT).masked_fill(itself_NN, MASKED)
    log_TBNN = torch.stack([(cosine_BNN / t).log_softmax(-1) for t in temperatures])
    if compared == "half":
        return log_TBNN
    log_TBNN = torch.logaddexp(log_TBNN, log_TBNN.mT)
    return log_TBNN - log_TBNN.logsumexp((-1, -2), keepdim=True)


class CosPress(MapLoss):
    """Compress the teacher's tokens to the student's width by a map that keeps their cosines.

    Other losses map the student to the teacher; here one head h = Linear(LayerNorm(t)) maps the
    teacher's class token and patches to the student's width, and the student has no head:

    L = local + global + fea + token (arXiv:2411.15239): local and global compare neighbors
    (:func:`neighbor_divergence`) of t with those of h, among the tokens of an image and among the
    class tokens of the batch of all processes, and train the head alone. fea is 1 - cosine of all
    tokens of an image at once, student's and h, token the same of the class token; they train the
    student alone. The student's patches are brought to the teacher's grid. Networks without a
    class token have their embedding in its place.

    ```yaml
    losses:
      tokens: {kind: cospress, weight: 1.0}
    ```

    Args:
        compared: ``full`` as published, or ``half``, see :func:`neighbor_divergence`.
        temperatures: T of the neighbors.

    Raises:
        UserError: a network without a grid of patches, or one whose embedding is not as wide as
            its patches.
    """

    kind = "cospress"
    family = "relational"
    paper = "Mannix et al., TMLR 2025, arXiv:2411.15239"
    reads = "embedding, maps"
    prefix = "final"
    required = "grid of patches behind the last norm"
    exact_under_sharding = True

    def __init__(
        self,
        shapes: Shapes,
        *,
        compared: Compared = "full",
        temperatures: Temperatures = TEMPERATURES,
    ):
        super().__init__(shapes, "last")
        (pair,) = self.map_pairs
        self.check_widths(pair)
        self.compared: Compared = compared
        self.temperatures = temperatures
        self.head = nn.Sequential(
            nn.LayerNorm(shapes.teacher_dim), nn.Linear(shapes.teacher_dim, shapes.student_dim)
        )

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        terms = []
        for student_view, teacher_view in zip(student, teacher, strict=True):
            (maps,) = self.pairs_of(student_view, teacher_view)
            s_BCHW = resize_map(maps[0], maps[1].shape[-2:])
            s_BNC, t_BND = (
                torch.cat([class_BD[:, None], tokens(map_BDHW)], 1)
                for class_BD, map_BDHW in (
                    (student_view.embedding_BD, s_BCHW),
                    (teacher_view.embedding_BD, maps[1]),
                )
            )
            terms.append(torch.stack([*self.terms(s_BNC, t_BND).values()]).sum())
        return torch.stack(terms).mean()

    def terms(self, s_BNC: Tensor, t_BND: Tensor) -> dict[str, Tensor]:
        """The four terms by name, from tokens of which the first is the class token."""
        h_BNC = self.head(t_BND)
        # Over T = 0.01, the rounding of bf16 would be a logit.
        with torch.autocast(s_BNC.device.type, enabled=False):
            s_BNC, t_BND, h_BNC = s_BNC.float(), t_BND.float(), h_BNC.float()
            t_1BD, h_1BC = (gather_with_gradient(x[:, 0])[None] for x in (t_BND, h_BNC))
            target_BNC = h_BNC.detach()
            flat = (x.flatten(1) for x in (s_BNC, target_BNC))
            return {
                "local": self.divergence(t_BND, h_BNC).mean(),
                "global": self.divergence(t_1BD, h_1BC).mean(),
                "fea": (1 - F.cosine_similarity(*flat, dim=1)).mean(),
                "token": (1 - F.cosine_similarity(s_BNC[:, 0], target_BNC[:, 0], dim=1)).mean(),
            }

    def divergence(self, t_BND: Tensor, h_BNC: Tensor) -> Tensor:
        """:func:`neighbor_divergence` with the settings of the loss, (B,)."""
        return neighbor_divergence(t_BND, h_BNC, self.temperatures, self.compared)
