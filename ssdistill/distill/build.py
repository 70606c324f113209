"""Build the losses between one student and its teachers from their settings."""

from collections.abc import Mapping

from ssdistill.distill.teachers import by_name, full_names
from ssdistill.errors import UserError
from ssdistill.losses import Loss, LossSettings, Shapes
from ssdistill.models.backbones import Encoder
from ssdistill.models.masked_tokens import mask_width
from ssdistill.settings.registry import LOSSES


def build_losses(
    student: Encoder,
    teacher: Encoder | Mapping[str, Encoder],
    settings: Mapping[str, LossSettings],
    num_samples: int,
) -> dict[str, Loss]:
    """Build every loss, with fresh heads, once for each teacher it learns from.

    Args:
        teacher: one, or several by name.
        settings: of the registered kinds, by the name of the loss.
        num_samples: images in the training store.

    Returns:
        the losses by their names in ``settings``; with several teachers as ``loss/teacher``.

    Raises:
        UserError: a loss that these networks cannot serve, or that learns from a teacher there
            is not; ``losses.<name>`` is named.
    """
    teachers = by_name(teacher)
    facts = {name: shapes(student, encoder, num_samples) for name, encoder in teachers.items()}
    losses = {}
    for full, (name, learns_from) in full_names(settings, teachers).items():
        try:
            losses[full] = LOSSES.build(settings[name], facts[learns_from])
        except UserError as error:
            config_path = f"losses.{name}" if full == name else f"losses.{name} from {learns_from}"
            raise UserError(f"{config_path}: {error}") from None
    return losses


def shapes(student: Encoder, teacher: Encoder, num_samples: int) -> Shapes:
    """Collect the facts that losses between two encoders need before the first batch."""
    return Shapes(
        student_dim=student.embed_dim,
        teacher_dim=teacher.embed_dim,
        num_samples=num_samples,
        student_projection_dim=student.projection_dim,
        teacher_projection_dim=teacher.projection_dim,
        student_maps=_all_maps(student),
        teacher_maps=_all_maps(teacher),
        teacher_norms=teacher.stage_norms(),
        student_mask_dim=mask_width(student),
        student_name=student.name,
        teacher_name=teacher.name,
    )


def _all_maps(encoder: Encoder) -> dict[str, tuple[int, int, int]]:
    if not encoder.tap_names:
        return {}
    taps = encoder.taps
    encoder.set_taps(tuple(encoder.tap_names))
    try:
        return encoder.map_shapes()
    finally:
        encoder.set_taps(taps)
