"""Build what the training stages train, with initial weights."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ssdistill.chain.extending import training_settings
from ssdistill.chain.stages import Stage
from ssdistill.chain.workspace import Workspace
from ssdistill.data.extra import NEIGHBOR_VIEWS
from ssdistill.distill.build import build_losses
from ssdistill.distill.distiller import Distiller
from ssdistill.distill.neighbors import nearest_neighbors
from ssdistill.errors import UserError
from ssdistill.experiment.sections import DistillSettings
from ssdistill.label_free.encoding import evaluating
from ssdistill.losses import Loss
from ssdistill.models.backbones import Encoder, EncoderSpec, encoder_from_spec
from ssdistill.models.representation import Representation
from ssdistill.settings.registry import METHODS
from ssdistill.teachers.starting_weights import start_from
from ssdistill.train.seeding import seed_generators
from ssdistill.train.settings import TrainSettings
from ssdistill.train.task import Task

MOST_PLACES, MOST_IMAGES = 1 << 15, 1 << 12
"""Positions of feature maps, and images, that losses see before the first step."""


def fresh_encoder(stage: Stage) -> Encoder:
    """The stage's encoder at its initial weights.

    These depend on seed and architecture alone: untrained, control and distilled students of one
    seed start from the same weights.
    """
    config = dict(stage.config["encoder"])
    pretrained, weights = config.pop("pretrained"), config.pop("weights", None)
    spec = EncoderSpec.model_validate(config)
    seed_generators(stage.seed, "encoder", spec.model_dump_json())
    encoder = encoder_from_spec(spec, pretrained=pretrained)
    if weights:
        start_from(encoder, weights["path"])
    return encoder


def task_of(stage: Stage, workspace: Workspace) -> tuple[Task, TrainSettings]:
    """The task of a pretraining or distillation stage, at its initial weights, and its settings."""
    encoder, settings = fresh_encoder(stage), training_settings(stage)
    if not any(weight.requires_grad for weight in encoder.parameters()):
        raise UserError(
            f"{encoder.name}: none of its parameters can be trained; set requires_grad for some"
        )
    if isinstance(settings, DistillSettings):
        teachers = {role: workspace.encoder(parent) for role, parent in stage.parents.items()}
        return build_distiller(encoder, teachers, settings, stage, workspace), settings
    seed_generators(stage.seed, stage.digest)
    return METHODS.build(settings, encoder), settings


def assemble(
    student: Encoder,
    teachers: Mapping[str, Encoder],
    settings: DistillSettings,
    num_samples: int,
) -> Distiller:
    """The losses that the settings name, between these networks, for so many images."""
    # What is called teacher_dino in the table is called dino in the config.
    teachers = {role.removeprefix("teacher_"): encoder for role, encoder in teachers.items()}
    named = {loss.teacher for loss in settings.losses.values()}
    if named <= teachers.keys():
        # A row may compare what some of the teachers teach.
        teachers = {name: encoder for name, encoder in teachers.items() if name in named}
    losses = build_losses(student, teachers, settings.losses, num_samples)
    return Distiller(
        student,
        teachers,
        losses,
        settings.losses,
        settings.interpolate,
        settings.teacher_dropping,
    )


def build_distiller(
    student: Encoder,
    teachers: Mapping[str, Encoder],
    settings: DistillSettings,
    stage: Stage,
    workspace: Workspace,
) -> Distiller:
    """Student, teachers and the losses between them, heads freshly initialized."""
    seed_generators(stage.seed, stage.digest)
    distiller = assemble(student, teachers, settings, len(workspace.train))
    if NEIGHBOR_VIEWS & set(distiller.extra_views):
        first = next(iter(distiller.teachers.values()))
        device = workspace.device
        distiller.neighbors_NK = nearest_neighbors(workspace.embeddings(first).to(device))
    for name, teacher in distiller.teachers.items():
        _initialize_losses(teacher, distiller.losses_of(name).values(), workspace)
    return distiller


def _initialize_losses(teacher: Encoder, losses: Iterable[Loss], workspace: Workspace) -> None:
    """Initialize losses that need the teacher's embeddings of the training images."""
    fitted = [loss for loss in losses if loss.fits_teacher]
    if not fitted:
        return
    embedding_ND, projection_NP = workspace.embeddings(teacher), None
    device = workspace.device
    if teacher.projector is not None:
        with torch.no_grad():
            projection_NP = teacher.projector(embedding_ND).to(device)
    taps = tuple(dict.fromkeys(tap for loss in fitted for tap in loss.fit_taps))
    maps = _maps_of_some(teacher, taps, workspace) if taps else {}
    for loss in fitted:
        loss.fit_teacher(Representation(embedding_ND.to(device), projection_NP, maps))


@torch.no_grad()
def _maps_of_some(
    teacher: Encoder, taps: tuple[str, ...], workspace: Workspace
) -> dict[str, Tensor]:
    """Feature maps (N, C, H, W) of training images, of as many as have ``MOST_PLACES`` places."""
    before = teacher.taps
    teacher.set_taps(taps)
    try:
        places = max(height * width for _, height, width in teacher.map_shapes().values())
        images = workspace.images(min(MOST_IMAGES, max(1, MOST_PLACES // places)), seed=0)
        with evaluating(teacher, workspace.device) as device:
            parts = [teacher(x_BCHW.to(device)).maps for x_BCHW in images.split(64)]
    finally:
        teacher.set_taps(before)
    return {tap: torch.cat([maps[tap] for maps in parts]) for tap in taps}
