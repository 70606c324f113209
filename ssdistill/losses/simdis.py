"""SimDis: BYOL-like distillation from several targets (Gu et al., 2021, arXiv:2106.11304)."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ssdistill.data.batch import Batch
from ssdistill.losses import Loss, Read, Shapes, vectors
from ssdistill.losses.base.matching import squared_distance
from ssdistill.models.ema import cosine_momentum, momentum_copy, update_momentum
from ssdistill.models.heads import predictor
from ssdistill.models.representation import Outputs
from ssdistill.settings import Fraction, PositiveInt

TARGETS: dict[int, dict[str, int]] = {
    2: {"sema_dv": 1, "t_dv": 1},
    7: {"s_dv": 1, "sema_sv": 1, "sema_dv": 1, "t_sv": 2, "t_dv": 2},
}
"""Weight of each target: source (student, its moving average, teacher), same or different view."""

Views = Sequence[Tensor]


def view_distance(p: Views, t: Views, different: bool) -> Tensor:
    """Twice the mean squared distance of unit vectors over pairs of the same or different views.

    Of two views, that is the sum over both: mean_b (4 - 2 (n(p_1)·n(t_1) + n(p_2)·n(t_2))).
    """
    count = len(p)
    pairs = [(v, w) for v in range(count) for w in range(count) if (v != w) == different]
    return 2 * torch.stack([squared_distance(p[v], t[w]) for v, w in pairs]).mean()


def multi_target_distance(
    predictions: Mapping[str, Views], targets: Mapping[str, Views], weights: Mapping[str, int]
) -> Tensor:
    """Mean of :func:`view_distance` over the names in ``weights``, such as ``t_dv``.

    ``predictions`` are by name, ``targets`` by the name's part before ``_sv`` or ``_dv``.
    """
    terms = [
        weight * view_distance(predictions[name], targets[name[:-3]], name.endswith("_dv"))
        for name, weight in weights.items()
    ]
    return torch.stack(terms).sum() / sum(weights.values())


class SimDis(Loss):
    """Predict the student's moving average (BYOL) and the teacher's embedding.

    L = mean over targets of 2 mean (2 - 2 n(q_k(z_v))·n(target_w)), z = projector(s), with a
    predictor q_k for each kind of target: the student's own z of another view, its moving
    average's of the same and of another view, and the teacher's vector of the same and of
    another view (arXiv:2106.11304). No target gets a gradient. The paper's teacher has a
    moving average too, which makes two more targets, 7 in all; one that is frozen is its own
    moving average, and instead of having second predictors its two targets count twice.
    The pairs of views must be the default ones, ``same``: the loss makes the others itself.

    ```yaml
    losses:
      byol: {kind: simdis, targets: 7, hidden_dim: 512, weight: 1.0}
    ```

    Args:
        targets: 7, or the paper's 2: moving average and teacher, both of another view.
        dim: width of the projector's output.
        hidden_dim: width of the hidden layers.
        momentum: of the student's and its projector's moving average; it rises to 1 by a cosine.
        read: the teacher's vector: ``embedding``, or ``projection`` (the paper's) of the
            self-supervised head it was trained with.

    Raises:
        UserError: for ``read: projection`` and a teacher without one.
    """

    kind = "simdis"
    family = "feature matching"
    paper = "Gu et al., 2021, arXiv:2106.11304"
    accumulates = True
    reads = "embedding"
    views = 2

    def __init__(
        self,
        shapes: Shapes,
        *,
        targets: Literal[2, 7] = 7,
        dim: PositiveInt = 256,
        hidden_dim: PositiveInt = 4096,
        momentum: Fraction = 0.99,
        read: Read = "embedding",
    ):
        super().__init__(shapes)
        self.weights, self.momentum = TARGETS[targets], momentum
        self.read: Read = read
        widths = {"s": dim, "sema": dim, "t": self.teacher_width(read)}
        self.projector = predictor(shapes.student_dim, dim, hidden_dim)
        self.predictors = nn.ModuleDict(
            {name: predictor(dim, widths[name[:-3]], hidden_dim) for name in self.weights}
        )
        self.momentum_projector = momentum_copy(self.projector)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        count = len(student)
        z_ND = self.projector(torch.cat(vectors(student)))
        targets = {
            "s": z_ND.detach().chunk(count),
            "sema": self.moved(torch.cat(vectors(student.momentum))).chunk(count),
            "t": vectors(teacher, self.read),
        }
        predictions = {name: q(z_ND).chunk(count) for name, q in self.predictors.items()}
        return multi_target_distance(predictions, targets, self.weights)

    @torch.no_grad()
    def moved(self, s_ND: Tensor) -> Tensor:
        """Return the z of the moving averages."""
        return self.momentum_projector(s_ND)

    def momentum_at(self, step: int, num_steps: int) -> float:
        return cosine_momentum(super().momentum_at(step, num_steps), step, num_steps)

    def after_step(self, step: int, num_steps: int) -> None:
        momentum = self.momentum_at(step, num_steps)
        update_momentum(self.projector, self.momentum_projector, momentum)
