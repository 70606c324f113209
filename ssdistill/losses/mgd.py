"""MGD: the teacher's map from a masked student's (Yang et al., ECCV 2022, arXiv:2205.01529)."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssdistill.data.batch import Batch
from ssdistill.losses import Shapes
from ssdistill.losses.base.maps import MapChoice, MapLoss, MapNames, resize_map
from ssdistill.models.heads import map_regressor
from ssdistill.models.representation import Outputs
from ssdistill.settings import Fraction


def squares_per_image(s_BCHW: Tensor, t_BCHW: Tensor) -> Tensor:
    """1/B sum (s - t)^2, in float32."""
    with torch.autocast(s_BCHW.device.type, enabled=False):
        return F.mse_loss(s_BCHW.float(), t_BCHW.float(), reduction="sum") / len(s_BCHW)


class Generator(nn.Sequential):
    """Two 3x3 convolutions of equal width with a ReLU between."""

    def __init__(self, channels: int):
        first, second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        super().__init__(first, nn.ReLU(), second)


class MGD(MapLoss):
    """Generate the teacher's map from a masked student map.

    L = 1/B sum |G(keep * a(s)) - t|^2, summed over channels and positions; a is a 1x1
    convolution where the channels differ, G two 3x3 convolutions with a ReLU between, and keep
    is 0 with probability ``masked`` (arXiv:2205.01529, eq. 4). The sum makes the weight small: the
    published one is 7e-5. The paper blanks out positions; the published code for
    classification, followed here, channels. The draw depends on the step alone.

    ```yaml
    losses:
      feature: {kind: mgd, masked: 0.15, weight: 7.0e-5}
    ```

    Args:
        maps: which maps: ``last``, ``middle``, ``stages``, ``final`` or names.
        mask: what is blanked out: ``channels`` or positions in ``space``.
        masked: fraction that is masked.

    Raises:
        UserError: maps that a network does not have.
    """

    kind = "mgd"
    family = "feature matching"
    paper = "Yang et al., ECCV 2022, arXiv:2205.01529"
    paper_weight = 7e-5
    exact_under_sharding = True
    accumulates = True

    def __init__(
        self,
        shapes: Shapes,
        *,
        maps: MapChoice | MapNames = "last",
        mask: Literal["channels", "space"] = "channels",
        masked: Fraction = 0.15,
    ):
        super().__init__(shapes, maps)
        self.mask, self.masked = mask, masked
        channels = [(p.student_shape[0], p.teacher_shape[0]) for p in self.map_pairs]
        self.align = nn.ModuleList(
            nn.Identity()
            if student_width == teacher_width
            else map_regressor(student_width, teacher_width)
            for student_width, teacher_width in channels
        )
        self.generate = nn.ModuleList(Generator(teacher_width) for _, teacher_width in channels)

    def forward(
        self, student: Outputs, teacher: Outputs, batch: Batch, keep: Tensor | None = None
    ) -> Tensor:
        """The loss; ``keep``, (B, C, 1, 1) or (B, 1, H, W), replaces the random draw."""
        generator = torch.Generator(batch.index_B.device).manual_seed(batch.step)
        terms = []
        for student_view, teacher_view in zip(student, teacher, strict=True):
            for number, (s_BCHW, t_BCHW) in enumerate(self.pairs_of(student_view, teacher_view)):
                aligned_BCHW = self.align[number](resize_map(s_BCHW, t_BCHW.shape[-2:]))
                drawn = self.draw_keep(t_BCHW, generator, batch) if keep is None else keep
                restored_BCHW = self.generate[number](aligned_BCHW * drawn)
                terms.append(squares_per_image(restored_BCHW, t_BCHW))
        return torch.stack(terms).mean()

    def draw_keep(self, t_BCHW: Tensor, generator: torch.Generator, batch: Batch) -> Tensor:
        """Draw this batch's part of a mask for the images of all processes; False is masked."""
        _, channels, height, width = t_BCHW.shape
        shape = (channels, 1, 1) if self.mask == "channels" else (1, height, width)
        count, own = batch.place
        drawn = torch.rand((count, *shape), generator=generator, device=generator.device)
        return drawn[own] >= self.masked
