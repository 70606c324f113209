"""Gram anchoring: similarities within an image (Siméoni et al., 2025, arXiv:2508.10104)."""

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from ssdistill.losses import Shapes
from ssdistill.losses.base.maps import MapChoice, MapNames, resize_map, tokens
from ssdistill.losses.base.relations import MapRelation, whole_batch

RemoveNegative = bool | Literal["teacher"]


def token_gram(x_BNC: Tensor, normalize: bool = True) -> Tensor:
    """Cosines (B, N, N) between the tokens of each image; products unless ``normalize``."""
    x_BNC = F.normalize(x_BNC, dim=2) if normalize else x_BNC
    return x_BNC @ x_BNC.mT


def gram_difference(
    s_BNC: Tensor, t_BND: Tensor, remove_negative: RemoveNegative, normalize: bool = True
) -> Tensor:
    """Mean square of the difference between both networks' cosines."""
    student_BNN, teacher_BNN = token_gram(s_BNC, normalize), token_gram(t_BND, normalize)
    if remove_negative:
        teacher_BNN = teacher_BNN.clamp(min=0)
    if remove_negative is True:
        student_BNN = student_BNN.clamp(min=0)
    return F.mse_loss(student_BNN, teacher_BNN)


class Gram(MapRelation):
    """Match the similarities between the patches of an image (Gram anchoring).

    L = mean_b |X X^T - Y Y^T|_F^2 / N^2, summed over pairs of maps, where the rows of X and Y are
    the N positions of an image's map in student and teacher, each of length 1
    (arXiv:2508.10104). The student's map is brought to the teacher's grid; channels may
    differ. It says nothing of how one image relates to another: the paper adds it to other losses.
    The paper's teacher sees the images at twice the resolution, and its map is brought to the
    student's grid before anything else (``grid: student``).

    ```yaml
    losses:
      patches: {kind: gram, weight: 2.0}
      feature: {kind: simreg, weight: 1.0}
    ```

    Args:
        maps: which maps are compared, see :class:`ssdistill.losses.base.maps.MapLoss`.
        remove_negative: count negative cosines as 0, the published code's default; the
            published training keeps them. ``teacher`` does so for the teacher's alone.
        level: ``image`` compares the positions of an image; ``batch`` those of all images of
            all processes, which takes the square of their number in memory.
        normalize: off, products take the place of cosines.
        grid: whose grid the other network's map is brought to: ``teacher``, or ``student`` by a
            bicubic filter, as published.

    Raises:
        UserError: a network without the requested maps, or one with a single position.
    """

    kind = "gram"
    paper = "Siméoni et al., 2025, arXiv:2508.10104"
    accumulates = True
    minimum_at_teacher = True
    later_settings = ("level", "normalize", "grid")

    def __init__(
        self,
        shapes: Shapes,
        *,
        maps: MapChoice | MapNames = "last",
        remove_negative: RemoveNegative = True,
        level: Literal["image", "batch"] = "image",
        normalize: bool = True,
        grid: Literal["teacher", "student"] = "teacher",
    ):
        super().__init__(shapes, maps)
        self.remove_negative: RemoveNegative = remove_negative
        self.normalize = normalize
        self.level, self.grid = level, grid
        self.accumulates = level == "image"
        for pair in self.map_pairs:
            self._check("student", pair.student, pair.student_shape)
            self._check("teacher", pair.teacher, pair.teacher_shape)

    def _check(self, side: str, name: str, shape: tuple[int, int, int]) -> None:
        if shape[1] * shape[2] == 1:
            architecture = getattr(self.shapes, f"{side}_name")
            raise self.fail(
                f"map '{name}' of the {side} ({architecture}) has a single position, so no "
                "pairs to compare; choose an earlier map in maps"
            )

    def compare(self, s_BCHW: Tensor, t_BCHW: Tensor) -> Tensor:
        if self.grid == "teacher":
            s_BCHW = resize_map(s_BCHW, t_BCHW.shape[-2:])
        else:
            t_BCHW = finer_map(t_BCHW, s_BCHW.shape[-2:])
        s_BNC, t_BNC = tokens(s_BCHW), tokens(t_BCHW)
        if self.level == "batch":
            s_BNC, t_BNC = (whole_batch(x.flatten(0, 1))[None] for x in (s_BNC, t_BNC))
        return gram_difference(s_BNC, t_BNC, self.remove_negative, self.normalize)


def finer_map(x_BCHW: Tensor, size: Sequence[int]) -> Tensor:
    """Bring a map of another resolution to a grid, by a bicubic filter without antialiasing."""
    if tuple(x_BCHW.shape[-2:]) == tuple(size):
        return x_BCHW
    return F.interpolate(x_BCHW, size, mode="bicubic", align_corners=False, antialias=False)
