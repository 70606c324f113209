"""Weight interpolation: move the student's weights towards the teacher's where shapes allow."""

import logging
from typing import Literal

import torch
from torch import Tensor

from ssdistill.errors import UserError
from ssdistill.models.backbones import Encoder
from ssdistill.settings import Fraction, PositiveInt, Settings

log = logging.getLogger("ssdistill")


class InterpolateSettings(Settings):
    """student <- student + alpha (teacher - student), for tensors of equal name and shape.

    Args:
        alpha: step size; 1 copies the teacher.
        when: ``before`` training, once, or ``during``, after every ``every`` steps.
        every: optimizer steps between two moves.
        at_least: fraction of the student's weights that must have a counterpart.
    """

    alpha: Fraction = 0.5
    when: Literal["before", "during"] = "before"
    every: PositiveInt = 100
    at_least: Fraction = 0.0


class Interpolation:
    """Interpolate the student's tensors towards their counterparts in the teacher.

    Parameters and floating-point buffers (batch-norm statistics) count, by their names.

    Args:
        student: the encoder whose weights move.
        teacher: where they move to; unchanged.
        settings: how far and when.

    Raises:
        UserError: no tensor, or too few, of the student has the teacher's name and shape.
    """

    def __init__(self, student: Encoder, teacher: Encoder, settings: InterpolateSettings):
        self.settings, self._networks = settings, (student.net, teacher.net)
        student_tensors, teacher_tensors = self._tensors()
        self.names = [
            name
            for name, x in student_tensors.items()
            if name in teacher_tensors and teacher_tensors[name].shape == x.shape
        ]
        num_values = sum(x.numel() for x in student_tensors.values())
        self.fraction = sum(student_tensors[name].numel() for name in self.names) / num_values
        counted = f"{len(self.names)} of the student's {len(student_tensors)} tensors"
        counted += f" ({self.fraction:.1%})"
        if not self.names or self.fraction < settings.at_least:
            unmatched = next(name for name in student_tensors if name not in self.names)
            raise UserError(
                f"interpolate: only {counted} match a teacher tensor by name and shape "
                f"(first without a match: '{unmatched}'); use the same architecture or set "
                "interpolate=null"
            )
        if self.fraction < 1:
            log.warning("interpolate: only %s match a teacher tensor and are interpolated", counted)

    def _tensors(self) -> list[dict[str, Tensor]]:
        # Not cached: moving a network to a device replaces its buffers.
        return [
            {n: x for n, x in net.state_dict(keep_vars=True).items() if x.is_floating_point()}
            for net in self._networks
        ]

    @torch.no_grad()
    def move(self) -> None:
        """Move all tensors once."""
        student, teacher = self._tensors()
        for name in self.names:
            student[name].lerp_(teacher[name].to(student[name]), self.settings.alpha)

    def after_step(self, step: int) -> None:
        """Move after optimizer step ``step`` (from 0) if the settings say so."""
        if self.settings.when == "during" and (step + 1) % self.settings.every == 0:
            self.move()
