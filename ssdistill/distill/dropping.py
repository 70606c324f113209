"""Teacher dropping: an image learns from a random subset of its teachers (UNIC, arXiv:2408.05088).

Left alone, a student follows the teacher that is easiest to follow. So an image's teachers are
dropped at random, each by itself, but never the one it is furthest from.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from ssdistill.data.batch import Batch
from ssdistill.data.counter_rng import uniform
from ssdistill.distill.teachers import Origin
from ssdistill.errors import UserError
from ssdistill.losses import Loss
from ssdistill.losses.base.dropping import kept_weights

_DROPS = 240805088
"""Seed of these random draws, which depend on step and image number; the order of images already
depends on the seed of the training."""


class TeacherDropping:
    """Reweight the losses where images learn from only some of their teachers.

    Teachers are compared by the weighted sum of their losses for an image, so that all losses of
    a teacher are dropped together. Values stay what they are without dropping; the gradient of
    the weighted sum is that of the mean over the pairs of teacher and image that are kept, times
    the number of teachers, by which the weights have been divided.

    Args:
        probability: that an image does without a teacher.
        origins: loss and teacher of every name.
        losses: by the same names.

    Raises:
        UserError: a single teacher, or a loss that is no mean over images.
    """

    def __init__(
        self, probability: float, origins: Mapping[str, Origin], losses: Mapping[str, Loss]
    ):
        self.probability = probability
        self.teacher_of = {name: origin.teacher for name, origin in origins.items()}
        self.teachers = list(dict.fromkeys(self.teacher_of.values()))
        if len(self.teachers) == 1:
            raise UserError(
                "teacher_dropping requires at least two teachers, got 1; set teacher_dropping=null"
            )
        for name, loss in losses.items():
            if not loss.is_mean_over_images:
                raise UserError(
                    f"losses.{origins[name].loss}: not a mean over images, which "
                    "teacher_dropping requires; set teacher_dropping=null or choose another loss"
                )

    def __call__(
        self, loss_B: Mapping[str, Tensor], weights: Mapping[str, float], batch: Batch
    ) -> dict[str, Tensor]:
        """The losses, from those of each image (B,) and their weights at this step."""
        total_TB = torch.stack([self._total(teacher, loss_B, weights) for teacher in self.teachers])
        dropped_TB = draw_dropped(batch, len(self.teachers), self.probability)
        weight_B = dict(zip(self.teachers, kept_weights(total_TB, dropped_TB), strict=True))
        return {n: mean_pulled_by(x_B, weight_B[self.teacher_of[n]]) for n, x_B in loss_B.items()}

    def _total(
        self, teacher: str, loss_B: Mapping[str, Tensor], weights: Mapping[str, float]
    ) -> Tensor:
        names = [name for name in loss_B if self.teacher_of[name] == teacher]
        return torch.stack([weights[name] * loss_B[name].detach() for name in names]).sum(0)


def draw_dropped(batch: Batch, num_teachers: int, probability: float) -> Tensor:
    """Draw which teachers (rows, True is dropped) each image of the batch drops, (T, B)."""
    draw_BT = uniform(_DROPS, batch.step, batch.index_B, 0, num_teachers, torch.float32)
    return (draw_BT < probability).T


def mean_pulled_by(loss_B: Tensor, weight_B: Tensor) -> Tensor:
    """The mean of ``loss_B``, whose gradient is that of the mean of ``weight_B * loss_B``.

    So what is logged does not depend on what has been dropped.
    """
    pulled = (weight_B * loss_B).mean()
    return pulled + (loss_B.mean() - pulled).detach()
