"""Distillation of patches as in lightly-train's second method (2025, no paper)."""

from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from ssdistill.data.batch import Batch
from ssdistill.losses import Loss, Shapes
from ssdistill.losses.base.maps import Shape, resize_map, tokens
from ssdistill.models.final_patches import FINAL, FINAL_PATCHES
from ssdistill.models.representation import Outputs
from ssdistill.settings import PositiveInt

HIDDEN = 2048
"""Width of the head's hidden layers."""


def patch_head(in_dim: int, out_dim: int, depth: int) -> nn.Sequential:
    """Linear layers with LayerNorm and GELU between, applied to the last dimension.

    Weights are drawn from a normal distribution of standard deviation 0.02, cut at 2; biases are 0.
    """
    layers: list[nn.Module] = []
    for number, (wide, out) in enumerate(pairwise([in_dim, *[HIDDEN] * (depth - 1), out_dim])):
        if number:
            layers += [nn.LayerNorm(wide), nn.GELU()]
        layers.append(nn.Linear(wide, out))
        nn.init.trunc_normal_(cast("Tensor", layers[-1].weight), std=0.02)
        nn.init.zeros_(cast("Tensor", layers[-1].bias))
    return nn.Sequential(*layers)


class LightlyV2(Loss):
    """Match the patches of the teacher's last blocks, as they are.

    L = mean (W s + b - t)^2 over images, positions and components: s the map that the student
    pools, put through a head at every position and then onto the teacher's grid; t the maps of the
    teacher's last ``blocks``, each behind its last norm, side by side. Nothing is scaled to length
    1, and no class token is read: for dense tasks. As the library lightly-train has it in its
    second method, with teachers of DINOv2 and DINOv3. The library mixes images pairwise before
    both networks see them, which is a setting of the training (``mix``).

    ```yaml
    losses:
      patches: {kind: lightly_v2, blocks: 1, weight: 1.0}
    ```

    Args:
        blocks: of the teacher that are matched; null takes the last two of a transformer, and the
            last map of other networks.
        depth: linear layers of the head; hidden ones are 2048 wide.

    Raises:
        UserError: a network without a grid of patches, or a teacher without as many blocks.
    """

    kind = "lightly_v2"
    family = "feature matching"
    paper = "lightly-train, 2025, after FitNets, Romero et al., ICLR 2015, arXiv:1412.6550"
    reads = "maps"
    exact_under_sharding = True
    accumulates = True

    def __init__(
        self, shapes: Shapes, *, blocks: PositiveInt | None = None, depth: PositiveInt = 1
    ):
        super().__init__(shapes)
        student = self._known("student")
        teacher = self._known("teacher")
        count = min(2, len(teacher)) if blocks is None else blocks
        if count > len(teacher):
            raise self.fail(
                f"blocks={count}: the teacher ({shapes.teacher_name}) has {len(teacher)} map"
                f"{'s' * (len(teacher) > 1)} behind its last norm; set blocks={len(teacher)}"
            )
        self.student_taps = (FINAL_PATCHES,)
        self.teacher_taps = tuple([*teacher][-count:])
        width = sum(teacher[name][0] for name in self.teacher_taps)
        self.head = patch_head(student[FINAL_PATCHES][0], width, depth)

    def per_image(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        losses = []
        for student_view, teacher_view in zip(student, teacher, strict=True):
            s_BCHW = student_view.maps[FINAL_PATCHES]
            t_BND = self.targets([teacher_view.maps[name] for name in self.teacher_taps])
            grid = teacher_view.maps[self.teacher_taps[-1]].shape[-2:]
            s_BDHW = self.head(s_BCHW.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            s_BND = tokens(resize_map(s_BDHW, grid))
            losses.append((s_BND.float() - t_BND.float()).square().mean((1, 2)))
        return torch.stack(losses).mean(0)

    @staticmethod
    def targets(maps: list[Tensor]) -> Tensor:
        """Maps (B, C, H, W) side by side on the last one's grid, as tokens (B, N, D)."""
        size = maps[-1].shape[-2:]
        return torch.cat([tokens(resize_map(x_BCHW, size)) for x_BCHW in maps], -1)

    def _known(self, side: str) -> dict[str, Shape]:
        """Maps behind the last norm, from shallow to deep; the last one is what is pooled."""
        maps: dict[str, Shape] = getattr(self.shapes, f"{side}_maps")
        if FINAL_PATCHES not in maps:
            name = getattr(self.shapes, f"{side}_name")
            raise self.fail(f"the {side} ({name}) has no grid of patches behind its last norm")
        blocks = {name: shape for name, shape in maps.items() if name.startswith(FINAL)}
        patches = blocks.pop(FINAL_PATCHES)
        if blocks:
            del blocks[list(blocks)[-1]]  # the same map
        return blocks | {FINAL_PATCHES: patches}
