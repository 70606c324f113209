"""ReviewKD: knowledge review (Chen et al., CVPR 2021, arXiv:2104.09044)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssdistill.losses import Shapes
from ssdistill.losses.base.maps import MapChoice, MapNames
from ssdistill.losses.base.stage_maps import Maps, StageLoss
from ssdistill.models.representation import Representation
from ssdistill.settings import PositiveInt

LEVELS = (4, 2, 1)
"""Sides of the coarser grids on which maps are compared."""


def hierarchical_context(s_BCHW: Tensor, t_BCHW: Tensor) -> Tensor:
    """Mean squared difference on a pyramid: the map's own grid and coarser ones, in float32.

    Each coarser grid counts half of the one before; the weights add up to 1.
    """
    with torch.autocast(s_BCHW.device.type, enabled=False):
        s_BCHW, t_BCHW = s_BCHW.float(), t_BCHW.float()
        total, weight, weights = F.mse_loss(s_BCHW, t_BCHW), 1.0, 1.0
        for side in LEVELS:
            if side >= s_BCHW.shape[2]:
                continue
            weight /= 2
            student_map, teacher_map = (F.adaptive_avg_pool2d(x, side) for x in (s_BCHW, t_BCHW))
            total = total + weight * F.mse_loss(student_map, teacher_map)
            weights += weight
        return total / weights


def convolution(in_channels: int, out_channels: int, kernel: int) -> nn.Sequential:
    """Convolution and batch norm, uniformly initialized as published."""
    layer = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_uniform_(layer.weight, a=1)
    return nn.Sequential(layer, nn.BatchNorm2d(out_channels))


class Fusion(nn.Module):
    """Fuse a network stage's map with the result of the deeper ones.

    Both are ``width`` channels wide. Where there is a ``deeper`` one, two attention maps that a
    1x1 convolution computes from the two say how much of each goes into their sum.
    """

    def __init__(self, in_channels: int, width: int, out_channels: int, deeper: bool):
        super().__init__()
        self.reduce = convolution(in_channels, width, 1)
        self.attend = nn.Conv2d(2 * width, 2, 1) if deeper else None
        self.expand = convolution(width, out_channels, 3)

    def forward(
        self, x_BCHW: Tensor, deeper_BCHW: Tensor | None, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Return (sum for the next shallower stage, predicted teacher map), both of ``size``."""
        x_BCHW = self.reduce(x_BCHW)
        if deeper_BCHW is not None:
            assert self.attend is not None  # built with `deeper`
            deeper_BCHW = F.interpolate(deeper_BCHW, x_BCHW.shape[2:])
            share_B2HW = self.attend(torch.cat([x_BCHW, deeper_BCHW], 1)).sigmoid()
            x_BCHW = x_BCHW * share_B2HW[:, :1] + deeper_BCHW * share_B2HW[:, 1:]
        x_BCHW = F.interpolate(x_BCHW, size)
        return x_BCHW, self.expand(x_BCHW)


class Review(nn.Module):
    """One :class:`Fusion` per network stage, deepest first."""

    def __init__(self, student_widths: list[int], teacher_widths: list[int], width: int):
        super().__init__()
        last = len(student_widths) - 1
        self.fusions = nn.ModuleList(
            Fusion(in_channels, width, out_channels, deeper=k < last)
            for k, (in_channels, out_channels) in enumerate(
                zip(student_widths, teacher_widths, strict=True)
            )
        )

    def forward(self, maps: list[Tensor], sizes: list[tuple[int, int]]) -> list[Tensor]:
        """Predict the teacher's maps, of the ``sizes``, from the student's."""
        guesses, deeper = [], None
        for fusion, x_BCHW, size in reversed(list(zip(self.fusions, maps, sizes, strict=True))):
            deeper, guess = fusion(x_BCHW, deeper, size)
            guesses.append(guess)
        return guesses[::-1]


class ReviewKD(StageLoss):
    """Match each network stage of the teacher by fusing the student's deeper ones.

    L = sum over stages of HCL(g_k, t_k), where g_k = F_k(s_k, F_(k+1)(s_(k+1), ...)) joins the
    student's map of stage k with what was made of the deeper ones (attention based fusion), and
    HCL is the mean squared difference at the map's own resolution and, with halved weights, of
    4x4, 2x2 and 1x1 averages (hierarchical context loss). arXiv:2104.09044. The
    embedding is the deepest map, of 1x1. The teacher's maps are those after the ReLU; the published
    CIFAR code takes them before it, which not every network has.

    ```yaml
    losses:
      review: {kind: reviewkd, maps: stages, weight: 5.0, warmup: 0.083}
    ```

    Args:
        maps: which maps are paired, see :class:`ssdistill.losses.base.maps.MapLoss`.
        width: channels in which maps are joined. By default those of the student's embedding, at
            most 512.

    Raises:
        UserError: a network without feature maps, or without the one named.
    """

    kind = "reviewkd"
    family = "attention and intermediate"
    paper = "Chen et al., CVPR 2021, arXiv:2104.09044"
    accumulates = True
    paper_weight = 5.0
    reads = "maps, embedding"

    def __init__(
        self,
        shapes: Shapes,
        *,
        maps: MapChoice | MapNames = "stages",
        width: PositiveInt | None = None,
    ):
        super().__init__(shapes, maps)
        student_widths = [pair.student_shape[0] for pair in self.map_pairs] + [shapes.student_dim]
        teacher_widths = [pair.teacher_shape[0] for pair in self.map_pairs] + [shapes.teacher_dim]
        self.review = Review(student_widths, teacher_widths, width or min(512, shapes.student_dim))

    def pairs_of(self, student: Representation, teacher: Representation) -> Maps:
        pooled = student.embedding_BD[:, :, None, None], teacher.embedding_BD[:, :, None, None]
        return [*super().pairs_of(student, teacher), pooled]

    def view_loss(self, maps: Maps) -> Tensor:
        targets = [t for _, t in maps]
        guesses = self.review([s for s, _ in maps], [t.shape[2:] for t in targets])
        pairs = zip(guesses, targets, strict=True)
        return torch.stack([hierarchical_context(g, t) for g, t in pairs]).sum()
