"""Teachers by name, and the losses that learn from each of them."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from ssdistill.errors import UserError, nearest
from ssdistill.losses import LossSettings
from ssdistill.models.backbones import Encoder


class Origin(NamedTuple):
    """The loss of the config and the teacher behind one of the distiller's losses."""

    loss: str
    teacher: str


def by_name(teachers: Encoder | Mapping[str, Encoder]) -> dict[str, Encoder]:
    """Return the encoders by name; a single one without a name is called ``teacher``.

    Raises:
        UserError: no encoder, or a name with a dot or a slash.
    """
    if not isinstance(teachers, Mapping):
        return {"teacher": teachers}
    if not teachers:
        raise UserError("teachers: at least one teacher is required; add one")
    for name in teachers:
        if not name or set(name) & set("./"):
            raise UserError(
                f"teachers: invalid name '{name}'; names must not be empty or contain . or /"
            )
    return dict(teachers)


def full_names(settings: Mapping[str, LossSettings], teachers: Iterable[str]) -> dict[str, Origin]:
    """Name every loss with each teacher it learns from: ``unic/dino``, or ``unic`` for one teacher.

    Raises:
        UserError: a loss that learns from an unknown teacher.
    """
    teachers = list(teachers)
    origin_by_name = {}
    for loss, chosen in settings.items():
        if chosen.teacher is not None and chosen.teacher not in teachers:
            raise UserError(
                f"losses.{loss}.teacher: unknown teacher '{chosen.teacher}'"
                f"{nearest(chosen.teacher, teachers)}; known: {', '.join(teachers)}"
            )
        for teacher in teachers:
            if chosen.teacher in (None, teacher):
                full = f"{loss}/{teacher}" if len(teachers) > 1 else loss
                origin_by_name[full] = Origin(loss, teacher)
    return origin_by_name


def origins(names: Iterable[str], teachers: Iterable[str]) -> dict[str, Origin]:
    """Return the origin of each name made by :func:`full_names`.

    Raises:
        UserError: a name without a teacher where there are several, or a teacher without a loss.
    """
    teachers, names = list(teachers), list(names)
    if len(teachers) == 1:
        return {name: Origin(name, teachers[0]) for name in names}
    origin_by_name = {}
    for name in names:
        loss, _, teacher = name.rpartition("/")
        if not loss or teacher not in teachers:
            raise UserError(
                f"losses: '{name}' does not name a teacher; with several teachers, call it "
                f"<loss>/<teacher>, with one of {', '.join(teachers)}"
            )
        origin_by_name[name] = Origin(loss, teacher)
    for teacher in teachers:
        if all(origin.teacher != teacher for origin in origin_by_name.values()):
            raise UserError(f"teachers.{teacher}: unused by every loss; remove it or add a loss")
    return origin_by_name


def settings_by_loss(
    origins: Mapping[str, Origin], settings: Mapping[str, LossSettings]
) -> dict[str, LossSettings]:
    """Return settings by the losses' names in a config, with defaults for missing ones.

    Raises:
        UserError: settings without a loss.
    """
    names = list(dict.fromkeys(origin.loss for origin in origins.values()))
    for name in settings:
        if name not in names:
            raise UserError(
                f"losses: settings for unknown loss '{name}'; known: {', '.join(names)}"
            )
    return {name: settings.get(name, LossSettings()) for name in names}
