"""Distillation losses for a training loop of one's own: plain modules on tensors."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ssdistill.data.batch import Batch
from ssdistill.errors import UserError, shortened
from ssdistill.losses import Loss, Shapes
from ssdistill.losses.base.bank import IndexMemory
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

    Raises:
        UserError: an unknown kind or setting; a loss that needs more than its tensors can tell.
    """

    steps_done: Tensor

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
        sizes = {"student_dim": student_dim, "teacher_dim": teacher_dim}
        sizes |= {"num_samples": num_samples, "num_steps": num_steps}
        sizes |= {"student_projection_dim": student_projection_dim or 1}
        sizes |= {"teacher_projection_dim": teacher_projection_dim or 1}
        for name, size in sizes.items():
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise UserError(f"{kind}: {name}={size!r}: expected a whole number above 0")
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
        try:
            self.loss: Loss = LOSSES.build(chosen, shapes)
        except UserError as error:
            raise UserError(
                f"{error}; arguments for it: num_samples=…, student_maps={{name: (C, H, W)}}, "
                "teacher_maps={…}"
            ) from None
        views = self.loss.extra_student or self.loss.extra_teacher or self.loss.masks_student
        if views or self.loss.momentum is not None:
            raise UserError(
                f"{kind}: it needs further views or a moving average of the student, which only "
                "ssdistill.distill makes; use that"
            )
        self.settings, self.num_steps = chosen, num_steps
        self.register_buffer("steps_done", torch.zeros((), dtype=torch.int64))
        self._remembers = any(isinstance(module, IndexMemory) for module in self.modules())
        self._fitted = not self.loss.fits_teacher

    @property
    def step(self) -> int:
        """How often it was called in training mode; it is in the ``state_dict``."""
        return int(self.steps_done)

    def fit_teacher(self, teacher: View, projection_NP: Tensor | None = None) -> None:
        """Show losses that need it all training images' embeddings of the teacher, (N, D).

        Args:
            teacher: the embeddings; or a mapping of these as ``embedding``, and of the maps that
                the loss reads of some of the images.
            projection_NP: what the teacher's head returns, if it has one.

        Raises:
            UserError: a map is missing.
        """
        (seen,) = [view.detach() for view in _views(teacher)]
        if missing := [tap for tap in self.loss.fit_taps if tap not in seen.maps]:
            raise UserError(
                f"{self.loss.kind}: fit_teacher needs the teacher's map '{missing[0]}'; pass "
                f"{{'embedding': …, '{missing[0]}': …}}"
            )
        projection_NP = seen.projection_BP if projection_NP is None else projection_NP
        self.loss.fit_teacher(Representation(seen.embedding_BD, projection_NP, seen.maps))

    def forward(
        self,
        student: View | Sequence[View],
        teacher: View | Sequence[View],
        index_B: Tensor | None = None,
    ) -> Tensor:
        """The loss, weighted by ``weight`` and its schedule.

        Args:
            student, teacher: of one view, or a list of as many views; see :data:`View`.
            index_B: number of each image in the training set; required by losses that remember
                each, such as ``crd``.

        Raises:
            UserError: tensors of other shapes than the loss was made for, or without ``index_B``
                or :meth:`fit_teacher` where these are required.
        """
        students = self._checked(_views(student), "student", self.loss.shapes.student_dim)
        teachers = self._checked(_views(teacher), "teacher", self.loss.shapes.teacher_dim)
        teachers = [view.detach() for view in teachers]
        if len(students) != len(teachers) or len(students) < self.loss.views:
            raise UserError(
                f"{self.loss.kind}: takes {self.loss.views} or more views, as many of the student "
                f"as of the teacher; got {len(students)} and {len(teachers)}"
            )
        rows = {len(view.embedding_BD) for view in (*students, *teachers)}
        if len(rows) > 1:
            raise UserError(
                f"{self.loss.kind}: all views need as many rows, one for each image; they have "
                f"{', '.join(map(str, sorted(rows)))}"
            )
        index_B = self._index(index_B, students[0].embedding_BD)
        self._check_fitted()
        step = min(self.step, self.num_steps - 1)
        batch = Batch(None, index_B, 0, step, self.num_steps)
        value = self.loss(Outputs(students), Outputs(teachers), batch)
        self.steps_done += self.training
        return self.settings.weight_at(step, self.num_steps) * value

    def _checked(self, views: list[Representation], side: str, width: int) -> list[Representation]:
        for view in views:
            shape = tuple(view.embedding_BD.shape)
            if len(shape) != 2 or shape[1] != width or not shape[0]:
                raise UserError(
                    f"{self.loss.kind}: the {side}'s embedding must be (B, {width}), as it was "
                    f"made with {side}_dim={width}, got {shape}"
                )
            taps = self.loss.student_taps if side == "student" else self.loss.teacher_taps
            if missing := [tap for tap in taps if tap not in view.maps]:
                raise UserError(
                    f"{self.loss.kind}: the {side}'s map '{missing[0]}' is missing; pass a "
                    f"mapping such as {{'embedding': …, '{missing[0]}': …}}"
                )
        # Heads are in float32, whatever the networks return.
        return [view.float() for view in views]

    def _index(self, index_B: Tensor | None, like_BD: Tensor) -> Tensor:
        if index_B is None:
            if self._remembers:
                raise UserError(
                    f"{self.loss.kind}: it remembers every image: pass index_B, the number of each "
                    "image in the training set"
                )
            return torch.arange(len(like_BD), device=like_BD.device)
        most = self.loss.shapes.num_samples
        fits = index_B.shape == like_BD.shape[:1] and not index_B.is_floating_point()
        if fits and self._remembers:
            fits = int(index_B.min()) >= 0 and int(index_B.max()) < most
        if not fits:
            raise UserError(
                f"{self.loss.kind}: index_B must be one whole number from 0 to {most - 1} "
                f"(num_samples={most}) for each of the {len(like_BD)} images"
            )
        return index_B

    def _check_fitted(self) -> None:
        if self._fitted:
            return
        numbers = [x for x in self.loss.buffers() if x.is_floating_point() and x.numel()]
        if any(bool(x.isnan().all()) for x in numbers):
            raise UserError(
                f"{self.loss.kind}: it starts from the teacher's embeddings of the training "
                "images: call fit_teacher(embeddings) first"
            )
        self._fitted = True

    def after_step(self) -> None:
        """Update moving averages of the loss's own heads; call it after every optimizer step."""
        self.loss.after_step(min(self.step, self.num_steps) - 1, self.num_steps)


def _views(views: View | Sequence[View]) -> list[Representation]:
    if isinstance(views, Tensor | Representation | Mapping):
        views = [views]
    if not isinstance(views, Sequence) or isinstance(views, str):
        raise UserError(
            f"views are {shortened(repr(views))}; pass a tensor (B, D), or a list of them"
        )
    return [_representation(view) for view in views]


def _representation(view: View) -> Representation:
    if isinstance(view, Representation):
        return view
    if isinstance(view, Tensor):
        return Representation(view)
    if not isinstance(view, Mapping):
        raise UserError(
            f"a view is {shortened(repr(view))}; pass a tensor (B, D), or a mapping with an "
            "'embedding'"
        )
    if "embedding" not in view:
        raise UserError(f"a view has {', '.join(view)}; give it an 'embedding' (B, D), too")
    maps = {name: tensor for name, tensor in view.items() if name not in PARTS}
    return Representation(view["embedding"], view.get("projection"), maps)
