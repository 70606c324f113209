"""One file per distillation loss; a new file is registered automatically (see `registry`).

Parts of several losses belong in `base`, weighting and teachers in `distill`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import Field
from torch import Tensor, nn

from ssdistill.callable_modules import make_callable
from ssdistill.data.batch import Batch
from ssdistill.errors import UserError, nearest
from ssdistill.models.representation import Outputs, Representation
from ssdistill.settings import Fraction, NonNegative, NonNegativeInt, Settings

Pairs = Annotated[tuple[tuple[NonNegativeInt, NonNegativeInt], ...], Field(min_length=1)]
Pairing = Literal["same", "other"]
Read = Literal["embedding", "projection"]


def _on_tensors(kind: str) -> Callable[..., nn.Module] | None:
    """The loss of that kind as a module on tensors; None if there is none."""
    from ssdistill.losses.on_tensors import TensorLoss
    from ssdistill.settings.registry import LOSSES

    return partial(TensorLoss, kind) if kind in LOSSES.classes else None


make_callable(__name__, lambda name: not name.startswith("_"), _on_tensors)


def __getattr__(name: str) -> Any:
    """``ssdistill.losses.simreg(student_dim, teacher_dim)``, and the same of plug-ins."""
    if not name.startswith("_"):
        if find_spec(f"{__name__}.{name}") is not None:
            return import_module(f"{__name__}.{name}")
        if function := _on_tensors(name):
            return function
        from ssdistill.settings.registry import LOSSES

        raise AttributeError(f"unknown loss '{name}'{nearest(name, LOSSES.classes)}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class LossSettings(Settings):
    """Settings that every loss has in a config, besides its own.

    Args:
        weight: its weight in the total.
        schedule: the weight over the training: ``constant``, or ``cosine`` to ``weight_end``.
        warmup: fraction of the training over which the weight rises linearly from 0.
        weight_end: last weight of ``cosine``, as a fraction of ``weight``.
        pairs: which view of the student learns from which view of the teacher: ``same``,
            ``other`` (each from all the other full-size views), or pairs of numbers from 0, such
            as ``[[1, 0]]`` for weak/strong. null takes what the method's paper does.
        teacher: of several teachers, the one to learn from; null for every one, each with the
            same part of the weight.
    """

    weight: NonNegative = 1.0
    schedule: Literal["constant", "cosine"] = "constant"
    warmup: Fraction = 0.0
    weight_end: Fraction = 0.0
    pairs: Pairing | Pairs | None = None
    teacher: str | None = None

    def weight_at(self, step: int, num_steps: int) -> float:
        """Return the weight at optimizer step ``step`` (from 0) of ``num_steps``."""
        warmup_steps = round(self.warmup * num_steps)
        if step < warmup_steps:
            return self.weight * (step + 1) / warmup_steps
        if self.schedule == "constant":
            return self.weight
        progress = (step - warmup_steps) / max(1, num_steps - 1 - warmup_steps)
        cosine = (1 + math.cos(math.pi * progress)) / 2
        return self.weight * (self.weight_end + (1 - self.weight_end) * cosine)


@dataclass(frozen=True)
class Shapes:
    """Facts about the two networks that a loss needs before the first batch.

    Attributes:
        student_dim, teacher_dim: width of ``embedding_BD``.
        student_projection_dim, teacher_projection_dim: width of ``projection_BP``, or None.
        student_maps, teacher_maps: (C, H, W) by tap name, from shallow to deep. Names with a
            colon are no network stages: ``attention:blocks.11`` is what the class token attends to,
            (heads, 1, tokens) logits; ``before_relu:layer3`` a stage before its last ReLU.
        teacher_norms: (mean_C, std_C) that the batch norm before that last ReLU gives the
            teacher's map, by stage name, where there is one.
        student_mask_dim: width of the student's patches that a mask token may replace; None of
            networks that cannot be masked.
        num_samples: images in the training store (index memories need it).
        student_name, teacher_name: of the architectures, for messages.
    """

    student_dim: int
    teacher_dim: int
    num_samples: int
    student_projection_dim: int | None = None
    teacher_projection_dim: int | None = None
    student_maps: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    teacher_maps: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    teacher_norms: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    student_mask_dim: int | None = None
    student_name: str = "the student"
    teacher_name: str = "the teacher"


class Loss(nn.Module):
    """A distillation loss: ``forward(student, teacher, batch) -> scalar``.

    ``student`` and ``teacher`` are :class:`Outputs`: lists of one
    :class:`Representation` per pair of views, element v of the one learning from element v of the
    other. Positional constructor arguments come from the program (:class:`Shapes`);
    keyword-only ones are the config. Trainable parts are ordinary submodules or parameters, and
    state (queues, memories) ordinary persistent buffers, so that the optimizer and the
    checkpoint see them. The teacher's outputs never carry a gradient. A subclass defines
    :meth:`forward`, or :meth:`per_image` where it is a mean over images.

    A subclass sets:
        kind: name in a config.
        family: ``"similarity distribution"``, ``"contrastive"``, ``"feature matching"``,
            ``"relational"``, ``"attention and intermediate"`` or ``"prototype and logit"``.
        paper: ``"Author et al., Venue Year, arXiv:XXXX.XXXXX"``.
        reads: what it compares, for the listing: ``"embedding"``, ``"projection"``, ``"maps"``,
            ``"attention"``, or several of them with commas between.
        paper_weight: default of ``weight``, where the paper's is far from 1.
        pairing: which views are paired unless ``pairs`` says otherwise.
        views: how many views a step needs at least.
        extra_student, extra_teacher: further views of :data:`ssdistill.data.extra.EXTRA` that
            the student or the teacher must encode, found in ``Outputs.extra``.
        masks_student: True when the student must also encode its views with masks, which
            :meth:`student_mask` draws and ``mask_token_D`` hides; found in ``Outputs.masked``.
        fits_teacher: True when :meth:`fit_teacher` must see the teacher's embeddings of the
            training images before the first step.
        fit_taps: feature maps of the teacher that it must see of some of these images, too.
        exact_under_sharding: True when several processes compute what one would on the whole batch.
        accumulates: True when the loss of a batch is the mean of those of its parts, taken one
            after the other, batch norm in its heads aside: no image is compared with another, and
            none is remembered. ``accumulate`` requires it. An instance may be less than its class.
        minimum_at_teacher: True when student == teacher minimizes the loss (a test checks it).

        later_settings: names of settings that came later than the kind; see
            :class:`ssdistill.settings.later.WithLater`.

    and may set on the instance:
        student_taps, teacher_taps: names of the feature maps it reads (:class:`MapLoss` does).
        mask_token_D: a parameter, what stands for a masked patch, where it sets ``masks_student``.
        momentum: of the student's moving average, where it reads ``Outputs.momentum``.
        reads_projection: whether it reads the teacher's projection (:meth:`teacher_width` sets it).
    """

    kind: ClassVar[str]
    family: ClassVar[str]
    paper: ClassVar[str]
    reads: str = "embedding"
    paper_weight: ClassVar[float] = 1.0
    pairing: ClassVar[Pairing | tuple[tuple[int, int], ...]] = "same"
    views: ClassVar[int] = 1
    extra_student: tuple[str, ...] = ()
    extra_teacher: tuple[str, ...] = ()
    masks_student: bool = False
    fits_teacher: bool = False
    fit_taps: tuple[str, ...] = ()
    exact_under_sharding: ClassVar[bool] = False
    accumulates: bool = False
    minimum_at_teacher: ClassVar[bool] = False

    student_taps: tuple[str, ...] = ()
    teacher_taps: tuple[str, ...] = ()
    momentum: float | None = None
    mask_token_D: Tensor
    reads_projection: bool = False

    def __init__(self, shapes: Shapes):
        super().__init__()
        self.shapes = shapes

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        return self.per_image(student, teacher, batch).mean()

    def per_image(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """Return the loss of each image, (B,); the loss is its mean over the batch."""
        raise TypeError(f"{type(self).__name__} must define forward or per_image")

    @property
    def is_mean_over_images(self) -> bool:
        """Whether the loss is a mean over images, so that single images can be excluded."""
        return type(self).forward is Loss.forward

    def fit_teacher(self, teacher: Representation) -> None:
        """Fix what depends on the teacher alone, from its embeddings (N, D) of training images.

        Called once before the first step where ``fits_teacher`` is set; ``projection_BP`` is
        given where the teacher has one, ``maps`` of ``fit_taps`` for some of the images.
        """

    def momentum_at(self, step: int, num_steps: int) -> float:
        """Momentum of the student's moving average after step ``step``."""
        if self.momentum is None:
            raise TypeError(f"{type(self).__name__} must set momentum")
        return self.momentum

    def student_mask(self, batch: Batch, view: int, num_views: int) -> Tensor:
        """Which patches (B, N) of one of the views are hidden from the student, row by row."""
        raise TypeError(f"{type(self).__name__} must define student_mask")

    def after_step(self, step: int, num_steps: int) -> None:
        """Update moving averages of the loss's own heads; called after every optimizer step."""

    def fail(self, reason: str) -> UserError:
        """Return the error to raise when the networks lack what the loss requires."""
        return UserError(f"{self.kind}: {reason}")

    def teacher_width(self, read: Read) -> int:
        """Return the width of the vectors that :meth:`vectors` reads from the teacher.

        Raises:
            UserError: ``projection`` of a teacher without one.
        """
        if read == "embedding":
            return self.shapes.teacher_dim
        if self.shapes.teacher_projection_dim is None:
            raise self.fail(
                "read=projection: the teacher has no projection head; set read=embedding"
            )
        self.reads_projection = True
        return self.shapes.teacher_projection_dim


def vectors(outputs: Sequence[Representation], read: Read = "embedding") -> list[Tensor]:
    """Return the embedding (B, D) or the projection (B, P) of each representation."""
    if read == "embedding":
        return [r.embedding_BD for r in outputs]
    # teacher_width has refused a teacher without one.
    return [cast(Tensor, r.projection_BP) for r in outputs]
