"""Gram anchoring: similarities within an image (Siméoni et al., 2025, arXiv:2508.10104)."""

import torch.nn.functional as F
from torch import Tensor

from ssdistill.losses import Shapes
from ssdistill.losses.base.maps import MapChoice, MapNames, resize_map, tokens
from ssdistill.losses.base.relations import MapRelation


def token_gram(x_BNC: Tensor, remove_negative: bool) -> Tensor:
    """Cosines (B, N, N) between the tokens of each image."""
    x_BNC = F.normalize(x_BNC, dim=2)
    cosine_BNN = x_BNC @ x_BNC.mT
    return cosine_BNN.clamp(min=0) if remove_negative else cosine_BNN


def gram_difference(s_BNC: Tensor, t_BND: Tensor, remove_negative: bool) -> Tensor:
    """Mean square of the difference between both networks' cosines."""
    student_gram_BNN, teacher_gram_BNN = (token_gram(x, remove_negative) for x in (s_BNC, t_BND))
    return F.mse_loss(student_gram_BNN, teacher_gram_BNN)


class Gram(MapRelation):
    """Match the similarities between the patches of an image (Gram anchoring).

    L = mean_b |X X^T - Y Y^T|_F^2 / N^2, summed over pairs of maps, where the rows of X and Y are
    the N positions of an image's map in student and teacher, each of length 1
    (arXiv:2508.10104). The student's map is brought to the teacher's grid; channels may
    differ. It says nothing of how one image relates to another: the paper adds it to other losses.

    ```yaml
    losses:
      patches: {kind: gram, weight: 2.0}
      feature: {kind: simreg, weight: 1.0}
    ```

    Args:
        maps: which maps are compared, see :class:`ssdistill.losses.base.maps.MapLoss`.
        remove_negative: count negative cosines as 0, the published code's default; the
            published training keeps them.

    Raises:
        UserError: a network without the requested maps, or one with a single position.
    """

    kind = "gram"
    paper = "Siméoni et al., 2025, arXiv:2508.10104"
    accumulates = True
    minimum_at_teacher = True

    def __init__(
        self,
        shapes: Shapes,
        *,
        maps: MapChoice | MapNames = "last",
        remove_negative: bool = True,
    ):
        super().__init__(shapes, maps)
        self.remove_negative = remove_negative
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
        s_BCHW = resize_map(s_BCHW, t_BCHW.shape[-2:])
        return gram_difference(tokens(s_BCHW), tokens(t_BCHW), self.remove_negative)
