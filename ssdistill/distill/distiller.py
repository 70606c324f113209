"""The distiller: frozen teachers, one student, weighted losses between them."""

from collections import Counter
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ssdistill.data.batch import Batch
from ssdistill.data.extra import EXTRA
from ssdistill.data.view_size import size_of
from ssdistill.distill.build import shapes
from ssdistill.distill.cache.sources import OutputSource
from ssdistill.distill.dropping import TeacherDropping
from ssdistill.distill.interpolate import InterpolateSettings, Interpolation
from ssdistill.distill.masked import masked_outputs
from ssdistill.distill.pairing import Pair, resolve_pairs, selected
from ssdistill.distill.teachers import by_name, origins, settings_by_loss
from ssdistill.errors import UserError
from ssdistill.losses import Loss, LossSettings
from ssdistill.models.backbones import Encoder
from ssdistill.models.ema import momentum_copy, update_momentum
from ssdistill.models.encode import encode_views
from ssdistill.models.float16 import beyond_float16, never_in_float16
from ssdistill.models.representation import Outputs, Representation
from ssdistill.settings import Size
from ssdistill.train.sharding import is_sharded
from ssdistill.train.task import Task

__all__ = ["Distiller", "shapes"]

Pairs = dict[str, list[Pair]]
"""Pairs of views by the name of the loss that compares them."""


class Distiller(Task):
    """Train ``student`` by weighted losses against one or several frozen teachers.

    The teachers follow the distiller from device to device but are no submodules of it: they are
    in neither ``parameters()`` nor ``state_dict()``, and ``train()`` leaves them in eval mode. All
    networks take images in [0, 1] and normalize them for themselves, and encode only the views
    that a loss pairs. Feature maps that the losses read are tapped here.

    Each of several teachers has losses of its own (:func:`ssdistill.distill.build.build_losses`),
    called ``loss/teacher``; the teachers of a loss share its weight equally.

    Args:
        student: the encoder to train, ``encoder`` to the training loop.
        teacher: the encoder to learn from, or several by name; frozen in place.
        losses: by the name they are logged under.
        settings: weight, schedule and pairs of each loss, by its name without that of a teacher;
            the defaults where a name is missing.
        interpolate: moves the student's weights towards the teacher's, where given.
        teacher_dropping: probability that an image does not learn from a teacher, None for never
            (:class:`ssdistill.distill.dropping.TeacherDropping`).

    Attributes:
        source: of the teachers' outputs; None for the teachers themselves.

    Raises:
        UserError: no loss, a name no module can have, a name without a loss or a teacher, moving
            averages of the student at different momentums, nothing to interpolate or to drop.
    """

    def __init__(
        self,
        student: Encoder,
        teacher: Encoder | Mapping[str, Encoder],
        losses: Mapping[str, Loss],
        settings: Mapping[str, LossSettings] | None = None,
        interpolate: InterpolateSettings | None = None,
        teacher_dropping: float | None = None,
    ):
        super().__init__()
        if not losses:
            raise UserError("losses: at least one loss is required; add one")
        self.encoder = student
        self.source: OutputSource | None = None
        # In a dict, nn.Module does not see the teachers.
        self.teachers = {n: t.requires_grad_(False).eval() for n, t in by_name(teacher).items()}
        self.origins = origins(losses, self.teachers)
        # As it is typed, a ModuleDict holds any modules.
        self.losses = cast("MutableMapping[str, Loss]", nn.ModuleDict())
        for name, loss in losses.items():
            try:
                self.losses[name] = loss
            except KeyError as error:
                raise UserError(f"losses: invalid name '{name}'; choose another") from error
        self.settings = settings_by_loss(self.origins, settings or {})
        self.num_views = max(loss.views for loss in losses.values())
        extra_names = {
            n for loss in losses.values() for n in (*loss.extra_student, *loss.extra_teacher)
        }
        self.extra_views = tuple(name for name in EXTRA if name in extra_names)
        self._tap()
        self.dropping = None
        if teacher_dropping:
            self.dropping = TeacherDropping(teacher_dropping, self.origins, losses)
        if interpolate and len(self.teachers) > 1:
            raise UserError(
                f"interpolate requires a single teacher, got {len(self.teachers)}; "
                "set interpolate=null"
            )
        self.interpolation = None
        if interpolate:
            self.interpolation = Interpolation(student, self.teacher, interpolate)
            if interpolate.when == "before":
                self.interpolation.move()
        self.momentum_student = self._moving_average(losses)

    @property
    def student(self) -> Encoder:
        """The encoder being trained."""
        return self.encoder

    @property
    def teacher(self) -> Encoder:
        """The frozen encoder, if there is only one."""
        (teacher,) = self.teachers.values()
        return teacher

    @property
    def comparing(self) -> tuple[str, ...]:
        names = [self.origins[n].loss for n, loss in self.losses.items() if not loss.accumulates]
        compared = [f"losses.{name}" for name in dict.fromkeys(names)]
        # What an image keeps of its teachers is weighed by what others keep.
        return (*compared, *(["teacher_dropping"] if self.dropping else []))

    def losses_of(self, teacher: str) -> dict[str, Loss]:
        """Return the losses that learn from one teacher, by their full names."""
        return {n: self.losses[n] for n in self.origins if self.origins[n].teacher == teacher}

    def weights_at(self, step: int, num_steps: int) -> dict[str, float]:
        """Return the weight of each loss at one step, by name."""
        teachers = Counter(origin.loss for origin in self.origins.values())
        return {
            name: self.settings[loss].weight_at(step, num_steps) / teachers[loss]
            for name, (loss, _) in self.origins.items()
        }

    def pairs_of(self, name: str, sizes: Sequence[Size]) -> list[Pair]:
        """Return the (student's view, teacher's view) pairs that the loss ``name`` compares.

        Raises:
            UserError: pairs with an unknown view; the message names the loss.
        """
        loss = self.origins[name].loss
        try:
            return resolve_pairs(self.settings[loss].pairs or self.losses[name].pairing, sizes)
        except UserError as error:
            raise UserError(f"losses.{loss}.{error}") from None

    def forward(self, views: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return unweighted losses by name.

        Args:
            views: (B, C, H, W) tensors in [0, 1]: ``num_views`` or more, and after them those
                named in ``extra_views``, in that order.
            batch: where the images come from.
        """
        count = len(views) - len(self.extra_views)
        extra = dict(zip(self.extra_views, views[count:], strict=True))
        sizes = [size_of(view) for view in views[:count]]
        pairs = {name: self.pairs_of(name, sizes) for name in self.losses}
        student = self._student_outputs(views[:count], extra, pairs, batch)
        teacher = self._teacher_outputs(views[:count], extra, pairs, batch)
        sides = {name: (student[name], teacher[name], batch) for name in self.losses}
        with never_in_float16(views[0].device.type):
            if self.dropping is None:
                return {name: loss(*sides[name]) for name, loss in self.losses.items()}
            loss_B = {name: loss.per_image(*sides[name]) for name, loss in self.losses.items()}
            return self.dropping(loss_B, self.weights_at(batch.step, batch.num_steps), batch)

    def _student_outputs(
        self, views: list[Tensor], extra: dict[str, Tensor], pairs: Pairs, batch: Batch
    ) -> dict[str, Outputs]:
        views_by_loss = {name: [i for i, _ in pairs[name]] for name in pairs}
        used_views = {i: views[i] for i in sorted(set().union(*views_by_loss.values()))}
        extra_names = {n for loss in self.losses.values() for n in loss.extra_student}
        seen = {**used_views, **selected(extra, extra_names)}
        outputs = beyond_float16(encode_views(self.encoder, seen))
        self.last_embeddings = [outputs[i].embedding_BD.detach() for i in used_views]
        moved = self._momentum_outputs(views, views_by_loss)
        masked = masked_outputs(self, self.encoder, self.losses, views, views_by_loss, batch)
        return {
            name: Outputs(
                [outputs[i] for i in views_by_loss[name]],
                selected(outputs, loss.extra_student),
                [moved[i] for i in views_by_loss[name]] if loss.momentum is not None else (),
                masked.get(name, ()),
            )
            for name, loss in self.losses.items()
        }

    @torch.no_grad()
    def _momentum_outputs(
        self, views: list[Tensor], views_by_loss: dict[str, list[int]]
    ) -> dict[int, Representation]:
        if self.momentum_student is None:
            return {}
        readers = [name for name, loss in self.losses.items() if loss.momentum is not None]
        used_views = sorted({i for name in readers for i in views_by_loss[name]})
        outputs = encode_views(self.momentum_student, {i: views[i] for i in used_views})
        return beyond_float16(outputs)

    def _teacher_outputs(
        self, views: list[Tensor], extra: dict[str, Tensor], pairs: Pairs, batch: Batch
    ) -> dict[str, Outputs]:
        outputs = {}
        for teacher in self.teachers:
            losses = self.losses_of(teacher)
            views_by_loss = {name: [j for _, j in pairs[name]] for name in losses}
            names = self._views_read(teacher, pairs)
            used_views = {n: extra[n] if isinstance(n, str) else views[n] for n in names}
            targets = beyond_float16(self.targets(used_views, batch, teacher))
            for name, loss in losses.items():
                compared = [targets[j] for j in views_by_loss[name]]
                outputs[name] = Outputs(compared, selected(targets, loss.extra_teacher))
        return outputs

    def teacher_views(self, teacher: str, sizes: Sequence[Size]) -> list[int | str]:
        """Return the numbers and names of the views that a teacher encodes, of all views' sizes."""
        pairs = {name: self.pairs_of(name, sizes) for name in self.losses_of(teacher)}
        return self._views_read(teacher, pairs)

    def _views_read(self, teacher: str, pairs: Pairs) -> list[int | str]:
        losses = self.losses_of(teacher)
        numbers = {j for name in losses for _, j in pairs[name]}
        names = {n for loss in losses.values() for n in loss.extra_teacher}
        return [*sorted(numbers), *(name for name in EXTRA if name in names)]

    @torch.no_grad()
    def targets(
        self, views: dict[int | str, Tensor], batch: Batch, teacher: str | None = None
    ) -> dict[int | str, Representation]:
        """Return a teacher's outputs by view, without gradient; ``teacher`` is optional for one.

        Not under ``inference_mode``: autograd cannot save its tensors, and the copies that would
        take cost what it gains.
        """
        (name,) = self.teachers if teacher is None else [teacher]
        if self.source is not None:
            return self.source(name, lambda: encode_views(self.teachers[name], views), batch)
        return encode_views(self.teachers[name], views)

    def after_step(self, step: int, num_steps: int) -> None:
        """Update the student's weights, its moving average and those of the losses' heads."""
        if self.interpolation:
            self.interpolation.after_step(step)
        for loss in self.losses.values():
            if loss.momentum is not None:
                momentum = loss.momentum_at(step, num_steps)
            loss.after_step(step, num_steps)
        if self.momentum_student is not None:
            update_momentum(self.encoder, self.momentum_student, momentum)

    def train(self, mode: bool = True) -> "Distiller":
        """Switch student and losses to training mode; teachers stay in eval mode."""
        super().train(mode)
        for teacher in self.teachers.values():
            teacher.eval()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Distiller":
        for teacher in self.teachers.values():
            if not is_sharded(teacher):  # which is where it belongs
                teacher._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def _tap(self) -> None:
        """Make each network return the feature maps and projections that the losses read."""
        student_taps = dict.fromkeys(
            tap for loss in self.losses.values() for tap in loss.student_taps
        )
        self.student.set_taps(tuple(student_taps))
        for name, teacher in self.teachers.items():
            losses = self.losses_of(name).values()
            teacher_taps = dict.fromkeys(tap for loss in losses for tap in loss.teacher_taps)
            teacher.set_taps(tuple(teacher_taps))
            teacher.project = any(loss.reads_projection for loss in losses)

    def _moving_average(self, losses: Mapping[str, Loss]) -> Encoder | None:
        momentums = {
            self.origins[name].loss: loss.momentum
            for name, loss in losses.items()
            if loss.momentum is not None
        }
        if not momentums:
            return None
        if len(set(momentums.values())) > 1:
            listed = ", ".join(f"losses.{n}.momentum={m}" for n, m in momentums.items())
            raise UserError(
                f"losses disagree on the momentum of the student's moving average: {listed}; set "
                "one value"
            )
        return momentum_copy(self.encoder)
