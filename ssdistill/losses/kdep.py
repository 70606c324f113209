"""KDEP: the teacher's principal components, flattened (He et al., CVPR 2022, arXiv:2203.05180)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ssdistill.data.batch import Batch
from ssdistill.losses import Loss, Shapes
from ssdistill.models.representation import Outputs, Representation
from ssdistill.settings import Positive


def principal_directions(t_ND: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Mean (D) and the ``count`` directions of largest variance (D, count), largest first.

    They are the first right singular vectors of the centered rows, each with the sign that makes
    its largest component positive, so that every machine finds the same.
    """
    # On the CPU, where every machine has float64.
    t_ND = t_ND.cpu().double()
    mean_D = t_ND.mean(0)
    centered_ND = t_ND - mean_D
    directions_DD = torch.linalg.eigh(centered_ND.T @ centered_ND).eigenvectors.flip(1)
    directions_DK = directions_DD[:, :count]
    largest_K = directions_DK.gather(0, directions_DK.abs().argmax(0)[None])[0]
    return mean_D, directions_DK * largest_K.sign()


def power_scale(x: Tensor, temperature: float, exponent: float) -> Tensor:
    """sign(x) |x / T|^p."""
    return x.sign() * (x / temperature).abs().pow(exponent)


class KDEP(Loss):
    """Regress the teacher's leading principal components, power-scaled, without a head.

    L = mean (s - f)^2, f = sign(u) |u / T|^p, u = V (t - mean), V the first right singular
    vectors of the centered embeddings of the training images (arXiv:2203.05180). The published
    weight is 3; its code has the paper's matching of variances commented out, and so it is
    absent here. Where the teacher is narrower than the student, only the student's first
    components, as many as the teacher has, are matched.

    As published, the student's feature is its last stage before the last ReLU, averaged over
    positions, where it has one as wide as its embedding; an embedding that comes out of a ReLU
    could not be negative. The teacher's is its embedding.

    ```yaml
    losses:
      feature: {kind: kdep, temperature: 0.1, weight: 3.0}
    ```

    Args:
        temperature: T.
        exponent: p; small ones bring components of different variance closer together.
    """

    kind = "kdep"
    family = "feature matching"
    paper = "He et al., CVPR 2022, arXiv:2203.05180"
    paper_weight = 3.0
    fits_teacher = True
    exact_under_sharding = True
    accumulates = True

    mean_D: Tensor
    directions_DK: Tensor

    def __init__(self, shapes: Shapes, *, temperature: Positive = 0.1, exponent: Positive = 1 / 3):
        super().__init__(shapes)
        self.temperature, self.exponent = temperature, exponent
        self.width = min(shapes.student_dim, shapes.teacher_dim)
        # Until the fit, NaN: a loss that was forgotten to fit must not pass for one of zero.
        missing = float("nan")
        self.register_buffer("mean_D", torch.full((shapes.teacher_dim,), missing))
        directions_DK = torch.full((shapes.teacher_dim, self.width), missing)
        self.register_buffer("directions_DK", directions_DK)
        self.tap = _last_stage_before_relu(shapes)
        if self.tap is not None:
            self.reads, self.student_taps = "maps", (self.tap,)

    @torch.no_grad()
    def fit_teacher(self, teacher: Representation) -> None:
        mean_D, directions_DK = principal_directions(teacher.embedding_BD, self.width)
        self.mean_D.copy_(mean_D)
        self.directions_DK.copy_(directions_DK)

    def target(self, t_BD: Tensor) -> Tensor:
        """f, (B, width), in float32."""
        with torch.autocast(t_BD.device.type, enabled=False):
            components_BK = (t_BD.float() - self.mean_D) @ self.directions_DK
            return power_scale(components_BK, self.temperature, self.exponent)

    def per_image(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        features_ND = torch.cat([self._feature(r) for r in student])[:, : self.width]
        targets = torch.cat([self.target(r.embedding_BD) for r in teacher])
        squares_ND = F.mse_loss(features_ND, targets, reduction="none")
        return squares_ND.mean(1).reshape(len(student), -1).mean(0)

    def _feature(self, student: Representation) -> Tensor:
        if self.tap is None:
            return student.embedding_BD.float()
        return student.maps[self.tap].float().mean((2, 3))


def _last_stage_before_relu(shapes: Shapes) -> str | None:
    """Name of the map whose ReLU and mean over positions are the student's embedding."""
    names = [name for name in shapes.student_maps if ":" not in name]
    tap = f"before_relu:{names[-1]}" if names else ""
    as_wide = shapes.student_maps.get(tap, (None,))[0] == shapes.student_dim
    return tap if as_wide else None
