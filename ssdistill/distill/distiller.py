"""The figure in code: one frozen teacher, one student, weighted losses between them."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ssdistill.data.batch import Batch
from ssdistill.data.extra import EXTRA
from ssdistill.distill.interpolate import InterpolateSettings, Interpolation
from ssdistill.distill.pairing import Pair, resolve_pairs
from ssdistill.errors import UserError
from ssdistill.losses import Loss, LossSettings, Shapes
from ssdistill.models.backbones import Encoder
from ssdistill.models.ema import momentum_copy, update_momentum
from ssdistill.models.encode import encode_views
from ssdistill.models.representation import Outputs, Representation
from ssdistill.train.task import Task


def shapes(student: Encoder, teacher: Encoder, num_samples: int) -> Shapes:
    """What losses between these two encoders need to know before the first batch."""
    return Shapes(
        student_dim=student.embed_dim,
        teacher_dim=teacher.embed_dim,
        num_samples=num_samples,
        student_projection_dim=student.projection_dim,
        teacher_projection_dim=teacher.projection_dim,
        student_maps=_all_maps(student),
        teacher_maps=_all_maps(teacher),
        teacher_norms=teacher.stage_norms(),
        student_name=student.spec.name,
        teacher_name=teacher.spec.name,
    )


def _all_maps(encoder: Encoder) -> dict[str, tuple[int, int, int]]:
    taps = encoder.taps
    encoder.set_taps(tuple(encoder.tap_names))
    try:
        return encoder.map_shapes()
    finally:
        encoder.set_taps(taps)


class Distiller(Task):
    """Trains ``student`` by weighted losses against a frozen ``teacher``.

    The teacher follows the distiller from device to device but is no submodule of it: it is in
    neither ``parameters()`` nor ``state_dict()``, and ``train()`` leaves it in eval mode. Both
    networks take images in [0, 1] and normalise them for themselves, and encode only the views
    that a loss pairs. Feature maps that the losses read are tapped here.

    Args:
        student: the encoder to train, ``encoder`` to the training loop.
        teacher: the encoder to learn from; its parameters are frozen in place.
        losses: by the name they are logged under.
        settings: weight, schedule and pairs of each loss, by the same names; the defaults where
            a name is missing.
        interpolate: moves the student's weights towards the teacher's, where given.

    Raises:
        UserError: no loss, a name no module can have, a name without a loss, losses that want
            the student's moving average at different momentums, or nothing to interpolate.
    """

    def __init__(
        self,
        student: Encoder,
        teacher: Encoder,
        losses: Mapping[str, Loss],
        settings: Mapping[str, LossSettings] | None = None,
        interpolate: InterpolateSettings | None = None,
    ):
        super().__init__()
        if not losses:
            raise UserError("losses: at least one is needed to distil")
        for name in settings or {}:
            if name not in losses:
                raise UserError(f"losses: '{name}' has a weight but is no loss")
        self.encoder = student
        # In a tuple, nn.Module does not see the teacher.
        self._frozen = (teacher.requires_grad_(False).eval(),)
        self.losses = nn.ModuleDict()
        for name, loss in losses.items():
            try:
                self.losses[name] = loss
            except KeyError as error:
                raise UserError(f"losses: '{name}' cannot be a loss's name") from error
        self.settings = {name: (settings or {}).get(name, LossSettings()) for name in losses}
        self.num_views = max(loss.views for loss in losses.values())
        wanted = {n for loss in losses.values() for n in (*loss.extra_student, *loss.extra_teacher)}
        self.extra_views = tuple(name for name in EXTRA if name in wanted)
        self._tap(losses)
        self.interpolation = interpolate and Interpolation(student, teacher, interpolate)
        if interpolate and interpolate.when == "before":
            self.interpolation.move()
        self.momentum_student = self._moving_average(losses)

    @property
    def student(self) -> Encoder:
        """The encoder being trained."""
        return self.encoder

    @property
    def teacher(self) -> Encoder:
        """The frozen encoder."""
        return self._frozen[0]

    def weights_at(self, step: int, num_steps: int) -> dict[str, float]:
        """Weight of each loss at one step, by name."""
        return {name: s.weight_at(step, num_steps) for name, s in self.settings.items()}

    def pairs_of(self, name: str, sizes: Sequence[int]) -> list[Pair]:
        """(student's view, teacher's view) that the loss called ``name`` compares.

        Raises:
            UserError: pairs that name a view there is not; the loss is named.
        """
        wanted = self.settings[name].pairs or self.losses[name].pairing
        try:
            return resolve_pairs(wanted, sizes)
        except UserError as error:
            raise UserError(f"losses.{name}.{error}") from None

    def forward(self, views: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        """Unweighted losses by name.

        Args:
            views: (B, 3, H, W) tensors in [0, 1]: ``num_views`` or more, and after them those
                named in ``extra_views``, in that order.
            batch: where the images come from.
        """
        count = len(views) - len(self.extra_views)
        extra = dict(zip(self.extra_views, views[count:], strict=True))
        sizes = [view.shape[-1] for view in views[:count]]
        pairs = {name: self.pairs_of(name, sizes) for name in self.losses}
        student = self._student_outputs(views[:count], extra, pairs)
        teacher = self._teacher_outputs(views[:count], extra, pairs, batch)
        return {
            name: loss(student[name], teacher[name], batch) for name, loss in self.losses.items()
        }

    def _student_outputs(
        self, views: list[Tensor], extra: dict[str, Tensor], pairs: dict[str, list[Pair]]
    ) -> dict[str, Outputs]:
        ours = {name: [i for i, _ in pairs[name]] for name in pairs}
        seen = {i: views[i] for i in sorted(set().union(*ours.values()))}
        wanted = {n for loss in self.losses.values() for n in loss.extra_student}
        found = encode_views(self.encoder, {**seen, **_some(extra, wanted)})
        self.last_embeddings = [found[i].embedding_BD.detach() for i in seen]
        moved = self._momentum_outputs(views, ours)
        return {
            name: Outputs(
                [found[i] for i in ours[name]],
                _some(found, loss.extra_student),
                [moved[i] for i in ours[name]] if loss.momentum is not None else (),
            )
            for name, loss in self.losses.items()
        }

    @torch.no_grad()
    def _momentum_outputs(
        self, views: list[Tensor], ours: dict[str, list[int]]
    ) -> dict[int, Representation]:
        if self.momentum_student is None:
            return {}
        readers = [name for name, loss in self.losses.items() if loss.momentum is not None]
        seen = sorted({i for name in readers for i in ours[name]})
        return encode_views(self.momentum_student, {i: views[i] for i in seen})

    def _teacher_outputs(
        self,
        views: list[Tensor],
        extra: dict[str, Tensor],
        pairs: dict[str, list[Pair]],
        batch: Batch,
    ) -> dict[str, Outputs]:
        theirs = {name: [j for _, j in pairs[name]] for name in pairs}
        seen = {j: views[j] for j in sorted(set().union(*theirs.values()))}
        wanted = {n for loss in self.losses.values() for n in loss.extra_teacher}
        found = self.targets({**seen, **_some(extra, wanted)}, batch)
        return {
            name: Outputs([found[j] for j in theirs[name]], _some(found, loss.extra_teacher))
            for name, loss in self.losses.items()
        }

    @torch.no_grad()
    def targets(
        self, views: dict[int | str, Tensor], batch: Batch
    ) -> dict[int | str, Representation]:
        """The teacher's outputs by view, without gradient.

        Not under ``inference_mode``: autograd cannot save its tensors, and the copies that would
        take cost what it gains.
        """
        return encode_views(self.teacher, views)

    def after_step(self, step: int, num_steps: int) -> None:
        """Move the student's weights, its moving average and those of the losses' heads."""
        if self.interpolation:
            self.interpolation.after_step(step)
        for loss in self.losses.values():
            if loss.momentum is not None:
                momentum = loss.momentum_at(step, num_steps)
            loss.after_step(step, num_steps)
        if self.momentum_student is not None:
            update_momentum(self.encoder, self.momentum_student, momentum)

    def train(self, mode: bool = True) -> "Distiller":
        """Switch student and losses; the teacher stays in eval mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Distiller":
        self.teacher._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def _tap(self, losses: Mapping[str, Loss]) -> None:
        """Let each network return the feature maps and projections that the losses read."""
        for side, encoder in (("student", self.student), ("teacher", self.teacher)):
            taps: dict[str, None] = {}
            for loss in losses.values():
                taps |= dict.fromkeys(getattr(loss, f"{side}_taps"))
            encoder.set_taps(tuple(taps))
        self.teacher.project = any(loss.needs_projection for loss in losses.values())

    def _moving_average(self, losses: Mapping[str, Loss]) -> Encoder | None:
        momentums = {n: loss.momentum for n, loss in losses.items() if loss.momentum is not None}
        if not momentums:
            return None
        if len(set(momentums.values())) > 1:
            listed = ", ".join(f"losses.{n}.momentum={m}" for n, m in momentums.items())
            raise UserError(f"the student has one moving average, not several: {listed}")
        return momentum_copy(self.encoder)


def _some(found: Mapping[str, object], names: Sequence[str] | set[str]) -> dict:
    return {name: value for name, value in found.items() if name in names}
