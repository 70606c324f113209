"""What can be found wrong with the losses before anything has been trained."""

import torch

from ssdistill.chain.workspace import Workspace
from ssdistill.data.extra import NEEDS_NEIGHBOURS
from ssdistill.distill.distiller import Distiller, shapes
from ssdistill.errors import UserError
from ssdistill.experiment import DistillSettings
from ssdistill.registry import LOSSES, METHODS

ENOUGH_SAMPLES = 4096
"""Images a loss is told of here: a memory of all of them would be made only to be dropped."""


def check_losses(workspace: Workspace) -> list[str]:
    """Build every distillation once, at initial weights, and forget it.

    Returns:
        notices about settings that work and may not be meant.

    Raises:
        UserError: losses that these two networks cannot serve; the key is named.
    """
    experiment = workspace.experiment
    if experiment.distill is None:
        return []
    sections = {"distill": experiment.distill}
    sections |= {f"compare.{row}": settings for row, settings in experiment.compare.items()}
    notices = []
    for key, settings in sections.items():
        _check(workspace, key, settings)
        notices += _large_queues(key, settings, len(workspace.train))
    return notices


def _check(workspace: Workspace, key: str, settings: DistillSettings) -> None:
    experiment = workspace.experiment
    teacher = workspace.build(experiment.teacher.encoder)
    teacher.projector = METHODS.build(experiment.pretrain, teacher).projector
    student = workspace.build(experiment.student.encoder)
    facts = shapes(student, teacher, min(len(workspace.train), ENOUGH_SAMPLES))
    losses = {}
    for name, loss in settings.losses.items():
        try:
            losses[name] = LOSSES.build(loss, facts)
        except UserError as error:
            raise UserError(f"{key}.losses.{name}: {error}") from None
    try:
        distiller = Distiller(student, teacher, losses, settings.losses, settings.interpolate)
    except UserError as error:
        raise UserError(f"{key}.{error}") from None
    neighbours = sorted(NEEDS_NEIGHBOURS & set(distiller.extra_views))
    if settings.mix and neighbours:
        raise UserError(f"{key}.mix: a mixture has no neighbours, and a loss reads {neighbours[0]}")
    _check_sizes(distiller, key, [recipe.size for recipe in settings.views or () if recipe.size])


def _large_queues(key: str, settings: DistillSettings, num_samples: int) -> list[str]:
    queues = {name: getattr(loss, "queue", None) for name, loss in settings.losses.items()}
    return [
        f"{key}.losses.{name}.queue={queue} is more than the {num_samples} images: "
        "images meet their own keys of epochs before"
        for name, queue in queues.items()
        if queue and queue > num_samples
    ]


@torch.no_grad()
def _check_sizes(distiller: Distiller, key: str, sizes: list[int]) -> None:
    """Let both networks encode views of each size, which a transformer may refuse."""
    for size in sorted(set(sizes)):
        for network in ("student", "teacher"):
            encoder = getattr(distiller, network).eval()
            try:
                encoder(encoder.mean.new_zeros(1, 3, size, size))
            except AssertionError as error:
                raise UserError(
                    f"{key}.views: {encoder.spec.name} cannot encode views of {size} pixels "
                    f"({error}); set {network}.encoder.args.dynamic_img_size=true"
                ) from error
