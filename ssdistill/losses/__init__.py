"""One file = one distillation loss. A new file here is found by itself (see `registry`)."""

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn

from ssdistill.data.batch import Batch
from ssdistill.models.representation import Representation
from ssdistill.settings import NonNegative, Settings


class LossSettings(Settings):
    """What every loss has in a config: its weight in the total."""

    weight: NonNegative = 1.0


@dataclass(frozen=True)
class Shapes:
    """What a loss must know of the two networks before the first batch.

    Attributes:
        student_dim, teacher_dim: width of ``embedding_BD``.
        student_projection_dim, teacher_projection_dim: width of ``projection_BP``, or None.
        student_maps, teacher_maps: (C, H, W) by tap name.
        num_samples: images in the training store (index memories need it).
    """

    student_dim: int
    teacher_dim: int
    num_samples: int
    student_projection_dim: int | None = None
    teacher_projection_dim: int | None = None
    student_maps: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    teacher_maps: dict[str, tuple[int, int, int]] = field(default_factory=dict)


class Loss(nn.Module):
    """A distillation loss: ``forward(student, teacher, batch) -> scalar``.

    ``student`` and ``teacher`` are lists of :class:`Representation`, one per view, in the same
    view order. Positional constructor arguments come from the program (:class:`Shapes`);
    keyword-only ones are the config. Trainable parts are ordinary submodules or parameters, and
    state (queues, memories) ordinary persistent buffers, so that the optimizer and the
    checkpoint see them. The teacher's outputs never carry a gradient.

    A subclass sets:
        kind: name in a config.
        family: e.g. ``"feature matching"``, ``"contrastive"``, ``"similarity distribution"``.
        paper: ``"Author et al., Venue Year, arXiv:XXXX.XXXXX"``.
        reads: ``"embedding"`` or ``"projection"``, or tap names.
        views: how many views a step needs at least.
        exact_under_sharding: True when several processes compute what one would on the whole batch.
        minimum_at_teacher: True when student == teacher minimises the loss (a test checks it).
    """

    kind: ClassVar[str]
    family: ClassVar[str]
    paper: ClassVar[str]
    reads: ClassVar[str | tuple[str, ...]] = "embedding"
    views: ClassVar[int] = 1
    exact_under_sharding: ClassVar[bool] = False
    minimum_at_teacher: ClassVar[bool] = False

    def __init__(self, shapes: Shapes):
        super().__init__()
        self.shapes = shapes

    def forward(
        self, student: list[Representation], teacher: list[Representation], batch: Batch
    ) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__}.forward")
