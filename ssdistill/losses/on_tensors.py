"""Distillation losses for a training loop of one's own: plain modules on tensors."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ssdistill.data.batch import Batch
from ssdistill.errors import UserError
from ssdistill.losses import Loss, Shapes
from ssdistill.models.representation import Outputs, Representation
from ssdistill.settings.problems import validated
from ssdistill.settings.registry import LOSSES

View = Tensor | Representation | Mapping[str, Tensor]
"""Of one view: the embedding (B, D); or a mapping of ``embedding``, ``projection`` and taps."""
MapShapes = Mapping[str, tuple[int, int, int]]
PARTS = ("embedding", "projection")


class TensorLoss(nn.Module):
    """A loss between embeddings: ``loss(student_BD, teacher_BD)`` is a scalar.

    Its heads are parameters, its queues buffers: optimize and save it with the student. Losses of
    several views take a list of them, one for each. The teacher's tensors are detached.

    Args:
        kind: of a loss (``ssdistill list losses``).
        student_dim, teacher_dim: widths of the embeddings.
        num_samples: training images, for losses that remember each.
        student_maps, teacher_maps: (C, H, W) of feature maps by name, for losses of maps.
        student_projection_dim, teacher_projection_dim: widths of projections.
        num_steps: of the whole training, for losses with a schedule.
        settings: of the loss.

    Attributes:
        loss: what the distiller would use.
        step: how often it was called in training mode.

    Raises:
        UserError: an unknown kind or setting; a loss that needs more than its tensors can tell.
    """

    def __init__(
        self,
        kind: str,
        student_dim: int,
        teacher_dim: int,
        *,
        num_samples: int = 1,
        student_maps: MapShapes | None = None,
        teacher_maps: MapShapes | None = None,
        student_projection_dim: int | None = None,
        teacher_projection_dim: int | None = None,
        num_steps: int = 1,
        **settings: Any,
    ):
        super().__init__()
        chosen = validated(LOSSES.schema(kind), {"kind": kind, **settings}, kind)
        shapes = Shapes(
            student_dim,
            teacher_dim,
            num_samples,
            student_projection_dim,
            teacher_projection_dim,
            dict(student_maps or {}),
            dict(teacher_maps or {}),
        )
        self.loss: Loss = LOSSES.build(chosen, shapes)
        if self.loss.extra_student or self.loss.extra_teacher or self.loss.momentum is not None:
            raise UserError(
                f"{kind}: it needs further views or a moving average of the student, which only "
                "ssdistill.distill makes; use that"
            )
        self.settings, self.step, self.num_steps = chosen, 0, num_steps

    def fit_teacher(self, teacher_ND: Tensor, projection_NP: Tensor | None = None) -> None:
        """Show losses that need it all training images' embeddings of the teacher."""
        self.loss.fit_teacher(Representation(teacher_ND.detach(), projection_NP))

    def forward(
        self,
        student: View | Sequence[View],
        teacher: View | Sequence[View],
        index_B: Tensor | None = None,
    ) -> Tensor:
        """The loss, weighted by ``weight`` and its schedule.

        Args:
            student, teacher: of one view, or a list of as many views; see :data:`View`.
            index_B: number of each image in the training set; required with ``num_samples``.
        """
        students, teachers = _views(student), [view.detach() for view in _views(teacher)]
        if len(students) != len(teachers) or len(students) < self.loss.views:
            raise UserError(
                f"{self.loss.kind}: takes {self.loss.views} or more views, as many of the student "
                f"as of the teacher; got {len(students)} and {len(teachers)}"
            )
        count = len(students[0].embedding_BD)
        if index_B is None:
            index_B = torch.arange(count, device=students[0].embedding_BD.device)
        step = min(self.step, self.num_steps - 1)
        batch = Batch(None, index_B, 0, step, self.num_steps)
        value = self.loss(Outputs(students), Outputs(teachers), batch)
        self.step += self.training
        return self.settings.weight_at(step, self.num_steps) * value

    def after_step(self) -> None:
        """Update moving averages of the loss's own heads; call it after every optimizer step."""
        self.loss.after_step(min(self.step, self.num_steps) - 1, self.num_steps)


def _views(views: View | Sequence[View]) -> list[Representation]:
    if isinstance(views, Tensor | Representation | Mapping):
        views = [views]
    return [_representation(view) for view in views]


def _representation(view: View) -> Representation:
    if isinstance(view, Representation):
        return view
    if isinstance(view, Tensor):
        return Representation(view)
    if "embedding" not in view:
        raise UserError(f"a view has {', '.join(view)}; give it an 'embedding' (B, D), too")
    maps = {name: tensor for name, tensor in view.items() if name not in PARTS}
    return Representation(view["embedding"], view.get("projection"), maps)
