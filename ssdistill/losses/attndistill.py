"""AttnDistill: attention distillation (Wang et al., BMVC 2022, arXiv:2210.00944)."""

from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ssdistill.data.batch import Batch
from ssdistill.losses import Shapes, vectors
from ssdistill.losses.base.maps import MapChoice, MapNames, MapPair, resize_map
from ssdistill.losses.base.stage_maps import StageLoss
from ssdistill.models.representation import Outputs
from ssdistill.settings import NonNegative, Positive

ATTENTION_BOUNDS = (1e-5, 0.996)
"""Bounds of a token's attention."""

Grid = tuple[int, int]


def merged_heads(log_p_BHN: Tensor, temperature: float) -> Tensor:
    """softmax(sum_h log p_h / T), cut to [1e-5, 0.996] and scaled to sum 1 again, (B, N)."""
    p_BN = (log_p_BHN.sum(1) / temperature).softmax(1).clamp(*ATTENTION_BOUNDS)
    return p_BN / p_BN.sum(1, keepdim=True)


def attention_divergence(s_log_BHN: Tensor, t_log_BHN: Tensor, temperature: float) -> Tensor:
    """Mean over images of KL(teacher's || student's) between the heads' merged attention.

    The numbers of heads may differ. Both are log-probabilities in float32.
    """
    s_BN, t_BN = (merged_heads(x, temperature) for x in (s_log_BHN, t_log_BHN))
    return F.kl_div(s_BN.log(), t_BN, reduction="batchmean")


def class_and_patches(logits_BHN: Tensor, grid: Grid) -> Tensor:
    """Logits of the class token and the patches, without register or distillation tokens."""
    patches = grid[0] * grid[1]
    return torch.cat([logits_BHN[..., :1], logits_BHN[..., -patches:]], -1)


def on_another_grid(log_p_BHN: Tensor, grid: Grid, size: Grid) -> Tensor:
    """Resample log-attention to the patches onto a grid of ``size``; keep the class token's.

    The class token keeps its weight, and the patches together theirs.
    """
    p_BHN = log_p_BHN.exp()
    own_BH1, patches_BHN = p_BHN[..., :1], p_BHN[..., 1:]
    map_BHhw = rearrange(patches_BHN, "b heads (h w) -> b heads h w", h=grid[0])
    resized_BHN = rearrange(resize_map(map_BHhw, size), "b heads h w -> b heads (h w)")
    scale_BH1 = patches_BHN.sum(-1, keepdim=True) / resized_BHN.sum(-1, keepdim=True)
    resized_BHN = torch.cat([own_BH1, resized_BHN * scale_BH1], -1)
    return resized_BHN.clamp_min(torch.finfo(p_BHN.dtype).tiny).log()


def projector(in_dim: int, out_dim: int) -> nn.Sequential:
    """Build the published head: LayerNorm, four linear layers with GELU between, LayerNorm."""
    widths = (in_dim, 2 * in_dim, in_dim, 2 * in_dim)
    layers: list[nn.Module] = [nn.LayerNorm(in_dim)]
    for width, wider in pairwise(widths):
        layers += [nn.Linear(width, wider), nn.GELU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], out_dim), nn.LayerNorm(out_dim))


class AttnDistill(StageLoss):
    """Match the teacher's class token and its attention to the patches.

    L = mean (P(s) - t)^2 + w KL(a(t) || a(s)), a = softmax(sum_h log p_h / T) with p_h the
    attention of head h from the class token to all tokens, cut to [1e-5, 0.996] and scaled to
    sum 1; P is an MLP (arXiv:2210.00944). The mean of the first term is over images and dimensions,
    the KL's over images. Between networks with unlike numbers of tokens only the class token and
    the patches count, and the teacher's patches are put on the student's grid, as published but
    averaged or interpolated linearly: the published bicubic weights can turn negative.

    ```yaml
    losses:
      attention: {kind: attndistill, attention_weight: 20.0, temperature: 20.0, weight: 1.0}
    ```

    Args:
        maps: whose attention, by block, see :class:`ssdistill.losses.base.maps.MapLoss`.
        attention_weight: w.
        temperature: T. Sums over more heads are sharper: it also makes up for those.
        head: P: ``mlp`` of four layers as published, or ``linear``.

    Raises:
        UserError: a network without a class token that attends to others.
    """

    kind = "attndistill"
    family = "attention and intermediate"
    paper = "Wang et al., BMVC 2022, arXiv:2210.00944"
    reads = "embedding, attention"
    prefix = "attention"
    required = "class-token attention"
    exact_under_sharding = True
    accumulates = True

    def __init__(
        self,
        shapes: Shapes,
        *,
        maps: MapChoice | MapNames = "last",
        attention_weight: NonNegative = 20.0,
        temperature: Positive = 20.0,
        head: Literal["linear", "mlp"] = "mlp",
    ):
        super().__init__(shapes, maps)
        self.attention_weight, self.temperature = attention_weight, temperature
        build = projector if head == "mlp" else nn.Linear
        self.head = build(shapes.student_dim, shapes.teacher_dim)
        self.grids = [self._grids(pair) for pair in self.map_pairs]

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        s_ND, t_ND = self.head(torch.cat(vectors(student))), torch.cat(vectors(teacher))
        aligned = F.mse_loss(s_ND.float(), t_ND.float())
        return aligned + self.attention_weight * super().forward(student, teacher, batch)

    def pair_loss(self, k: int, s_BH1N: Tensor, t_BH1N: Tensor) -> Tensor:
        s_BHN, t_BHN = s_BH1N.squeeze(2).float(), t_BH1N.squeeze(2).float()
        with torch.autocast(s_BHN.device.type, enabled=False):
            grids = self.grids[k]
            if grids is None:
                s_log_BHN, t_log_BHN = s_BHN.log_softmax(-1), t_BHN.log_softmax(-1)
            else:
                student_grid, teacher_grid = grids
                s_log_BHN = class_and_patches(s_BHN, student_grid).log_softmax(-1)
                t_log_BHN = class_and_patches(t_BHN, teacher_grid).log_softmax(-1)
                t_log_BHN = on_another_grid(t_log_BHN, teacher_grid, student_grid)
            return attention_divergence(s_log_BHN, t_log_BHN, self.temperature)

    def _grids(self, pair: MapPair) -> tuple[Grid, Grid] | None:
        """Rows and columns of both networks' patches, if the numbers of tokens differ."""
        if pair.student_shape[-1] == pair.teacher_shape[-1]:
            return None
        lead = f"{self.prefix}:"
        student_shape = self.shapes.student_maps[pair.student.removeprefix(lead)]
        teacher_shape = self.shapes.teacher_maps[pair.teacher.removeprefix(lead)]
        return student_shape[1:], teacher_shape[1:]
