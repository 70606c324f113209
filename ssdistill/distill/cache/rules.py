"""What can be recorded, and what requires live teachers."""

from collections.abc import Mapping, Sequence
from math import prod

from ssdistill.data.extra import NEIGHBOR_VIEWS
from ssdistill.distill.distiller import Distiller
from ssdistill.errors import UserError
from ssdistill.losses import Loss
from ssdistill.losses.base.similarity import TargetLoss
from ssdistill.models.backbones import Encoder
from ssdistill.settings import Size

LARGEST_MAPS = 32 << 10
"""Bytes of feature maps, for an image and a view, that are still recorded: about as much as a small
photograph takes."""


def answer(loss: type[Loss]) -> str:
    """Say whether the outputs that a kind of loss reads can be recorded, for the listing."""
    if NEIGHBOR_VIEWS & {*loss.extra_student, *loss.extra_teacher}:
        return "no"
    maps = any(word in loss.reads for word in ("maps", "attention"))
    return "small maps" if maps else "yes"


def refuse_live(distiller: Distiller, mixed: bool) -> None:
    """Refuse what requires live teachers.

    Args:
        mixed: whether views are mixed (MixUp, CutMix).

    Raises:
        UserError: with the reason and the remedy, one line.
    """
    if mixed:
        raise UserError(
            "cache: mixed views are drawn anew in every step, and cannot be recorded; set mix=null "
            "or cache=null"
        )
    for name, loss in distiller.losses.items():
        key = f"losses.{distiller.origins[name].loss}"
        if neighbors := sorted(NEIGHBOR_VIEWS & {*loss.extra_student, *loss.extra_teacher}):
            raise UserError(
                f"cache: {key} reads views of neighbors ({neighbors[0]}), which are drawn anew in "
                "every epoch, and cannot be recorded; remove the loss or set cache=null"
            )
        if isinstance(loss, TargetLoss) and loss.momentum is not None:
            raise UserError(
                f"cache: {key}.target=momentum learns from the student's moving average, which "
                "changes, and cannot be recorded; set target=teacher or cache=null"
            )
    for name, teacher in distiller.teachers.items():
        size = map_bytes(teacher)
        if size > LARGEST_MAPS:
            readers = distiller.losses_of(name).items()
            readers = [distiller.origins[n].loss for n, loss in readers if loss.teacher_taps]
            raise UserError(
                f"cache: losses.{readers[0]} reads feature maps of {size:,} bytes per image and "
                f"view, more than the {LARGEST_MAPS:,} that are recorded; choose smaller maps or "
                "set cache=null"
            )


def map_bytes(teacher: Encoder) -> int:
    """Bytes of the feature maps that a teacher returns for one image of its full size."""
    shapes = teacher.map_shapes().values() if teacher.taps else ()
    return 2 * sum(map(prod, shapes))


def bytes_per_image(distiller: Distiller, sizes: Sequence[Size]) -> Mapping[str, int]:
    """Return the recorded bytes of one image in one pass, at most, by teacher.

    Args:
        sizes: of the views.
    """
    amounts = {}
    for name, teacher in distiller.teachers.items():
        numbers = teacher.embed_dim + ((teacher.projection_dim or 0) if teacher.project else 0)
        per_view = 2 * numbers + map_bytes(teacher)
        amounts[name] = per_view * len(distiller.teacher_views(name, sizes))
    return amounts
