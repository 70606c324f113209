"""Feature matching: the student, through a head, regresses the teacher's outputs.

An embedding is a map of one position here, so that one code serves both.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ssdistill.data.batch import Batch
from ssdistill.distributed import mean_over_processes, world_size
from ssdistill.losses import Loss, Shapes
from ssdistill.losses.base.bank import TeacherMean
from ssdistill.losses.base.maps import MapChoice, MapLoss, MapNames, resize_map
from ssdistill.models.heads import MapHead, map_regressor
from ssdistill.models.representation import Outputs, Representation

EPS = 1e-6


def squared_distance(s_BD: Tensor, t_BD: Tensor) -> Tensor:
    """|n(s) - n(t)|^2 = 2 - 2 n(s)·n(t) of each row, (B,), n(x) = x / |x|, in float32."""
    return 2 - 2 * F.cosine_similarity(s_BD.float(), t_BD.float(), dim=1)


class Regression(MapLoss):
    """Base class: mean over views and maps of ``distance(head(student), target(teacher))``.

    The student's map is brought to the teacher's grid first. A subclass defines ``distance``
    and, where the teacher's maps are not the targets as they are, ``targets``.

    Args:
        reads: ``embedding``, ``maps`` or ``embedding, maps``.
        maps: which maps, see :class:`MapLoss`; None where none are read.
        head: from the student's channels to the teacher's, see :func:`map_regressor`.

    Attributes:
        heads: one per pair, that of the embedding first.
        widths: the teacher's channels, in the same order.
    """

    family = "feature matching"

    def __init__(
        self, shapes: Shapes, *, reads: str, maps: MapChoice | MapNames | None, head: MapHead
    ):
        if maps is None:
            Loss.__init__(self, shapes)
            self.map_pairs = []
        else:
            super().__init__(shapes, maps)
        self.reads, self._with_embedding = reads, "embedding" in reads
        channels = [(p.student_shape[0], p.teacher_shape[0]) for p in self.map_pairs]
        if self._with_embedding:
            channels.insert(0, (shapes.student_dim, shapes.teacher_dim))
        self.heads = nn.ModuleList(
            map_regressor(student_width, teacher_width, head)
            for student_width, teacher_width in channels
        )
        self.widths = [teacher_width for _, teacher_width in channels]

    def pairs_of(
        self, student: Representation, teacher: Representation
    ) -> list[tuple[Tensor, Tensor]]:
        """(student, teacher) maps in the order of ``heads``."""
        pairs = super().pairs_of(student, teacher)
        if self._with_embedding:
            embeddings = student.embedding_BD, teacher.embedding_BD
            s_BD11, t_BD11 = (x_BD[:, :, None, None] for x_BD in embeddings)
            pairs.insert(0, (s_BD11, t_BD11))
        return pairs

    def targets(self, number: int, views: list[Tensor], batch: Batch) -> list[Tensor]:
        """Return the regression targets of one pair, from the teacher's float32 maps."""
        return views

    def distance(self, s_BCHW: Tensor, t_BCHW: Tensor) -> Tensor:
        """Loss of one pair in one view: (B, …), averaged over all axes but B."""
        raise TypeError(f"{type(self).__name__} must define distance")

    def per_image(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        views = [self.pairs_of(s, t) for s, t in zip(student, teacher, strict=True)]
        terms = []
        for number, head in enumerate(self.heads):
            teacher_maps = [pairs[number][1].float() for pairs in views]
            targets = self.targets(number, teacher_maps, batch)
            for pairs, t_BCHW in zip(views, targets, strict=True):
                s_BCHW = head(resize_map(pairs[number][0], t_BCHW.shape[-2:]))
                with torch.autocast(t_BCHW.device.type, enabled=False):
                    distance = self.distance(s_BCHW.float(), t_BCHW)
                    terms.append(distance.reshape(len(distance), -1).mean(1))
        return torch.stack(terms).mean(0)


class PlainRegression(Regression):
    """Base class of regression losses over embeddings or the positions of maps.

    Raises:
        UserError: ``maps`` together with ``read: embedding``.
    """

    reads = "embedding, maps"
    exact_under_sharding = True

    def __init__(
        self,
        shapes: Shapes,
        *,
        read: Literal["embedding", "maps"] = "embedding",
        maps: MapChoice | MapNames | None = None,
        head: MapHead = "linear",
        center_teacher: bool = False,
    ):
        if read == "embedding" and maps is not None:
            raise self.fail("maps is set but read=embedding ignores it; set read=maps")
        maps = maps or ("last" if read == "maps" else None)
        super().__init__(shapes, reads=read, maps=maps, head=head)
        self.centers = nn.ModuleList(
            MapMean(width) if center_teacher else nn.Identity() for width in self.widths
        )
        if center_teacher:
            self.accumulates = False

    def targets(self, number: int, views: list[Tensor], batch: Batch) -> list[Tensor]:
        return self.centers[number](views)


class MapMean(TeacherMean):
    """Subtract each channel's running mean over positions and all training batches."""

    @torch.no_grad()
    def forward(self, views: list[Tensor]) -> list[Tensor]:
        """Centered float32 copies of the views' maps, each (B, C, H, W)."""
        super().forward([t_BCHW.mean((2, 3)) for t_BCHW in views])
        return [t_BCHW - self.mean_D[:, None, None] for t_BCHW in views]


def statistics_momentum(step: int, num_steps: int, end: float) -> float:
    """Weight of the batch in running statistics: a cosine from 1 at step 0 to ``end``."""
    return end + (1 - end) * (1 + math.cos(math.pi * step / num_steps)) / 2


class Standardize(nn.Module):
    """Standardize maps by running statistics of each channel, as in UNIC (arXiv:2408.05088).

    The statistics are those from before the batch, 0 and 1 at first; then they move towards the
    batch's, taken over the images and positions of all views and processes.
    """

    mean_C: Tensor
    std_C: Tensor

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("mean_C", torch.zeros(width))
        self.register_buffer("std_C", torch.ones(width))

    @torch.no_grad()
    def forward(self, views: list[Tensor], momentum: float) -> list[Tensor]:
        """Return standardized float32 maps (B, C, H, W); ``momentum`` weighs the batch."""
        mean_C11, std_C11 = (x_C[:, None, None].clone() for x_C in (self.mean_C, self.std_C))
        if self.training:
            self._update([t_BCHW.float() for t_BCHW in views], momentum)
        return [(t_BCHW.float() - mean_C11) / (std_C11 + EPS) for t_BCHW in views]

    def _update(self, views: list[Tensor], momentum: float) -> None:
        rows_CN = torch.cat([rearrange(t_BCHW, "b c h w -> c (b h w)") for t_BCHW in views], 1)
        count = rows_CN.shape[1] * world_size()
        mean_C = mean_over_processes(rows_CN.mean(1))
        squares_C = mean_over_processes((rows_CN - mean_C[:, None]).square().mean(1))
        std_C = (squares_C * count / max(1, count - 1)).sqrt() + EPS
        self.mean_C.lerp_(mean_C, momentum)
        self.std_C.lerp_(std_C, momentum)


class StandardizedRegression(Regression):
    """Base class of losses whose targets are standardized teacher maps (:class:`Standardize`).

    Args:
        statistics_end: see :func:`statistics_momentum`.
    """

    exact_under_sharding = True

    def __init__(
        self,
        shapes: Shapes,
        *,
        reads: str,
        maps: MapChoice | MapNames,
        head: MapHead,
        statistics_end: float,
    ):
        super().__init__(shapes, reads=reads, maps=maps, head=head)
        self.statistics_end = statistics_end
        self.standardise = nn.ModuleList(Standardize(width) for width in self.widths)

    def targets(self, number: int, views: list[Tensor], batch: Batch) -> list[Tensor]:
        momentum = statistics_momentum(batch.step, batch.num_steps, self.statistics_end)
        return self.standardise[number](views, momentum)
