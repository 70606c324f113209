"""Check methods and losses before anything is trained."""

import copy
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import cast

from ssdistill.chain.recorded_outputs import check_recording
from ssdistill.chain.size_checks import check_sizes
from ssdistill.chain.tasks import assemble
from ssdistill.chain.trial_step import check_size, check_step
from ssdistill.chain.view_recipes import resolve_recipes
from ssdistill.chain.workspace import Workspace
from ssdistill.data.extra import NEIGHBOR_VIEWS
from ssdistill.data.recipes import expand
from ssdistill.distill.build import shapes
from ssdistill.distill.distiller import Distiller
from ssdistill.errors import UserError
from ssdistill.experiment.schema import Experiment
from ssdistill.experiment.sections import (
    DistillSettings,
    NetworkSettings,
    PretrainedRow,
    PretrainedTeacher,
)
from ssdistill.models.backbones import EncoderSettings
from ssdistill.models.trial import REFUSALS, reason_of, refusing
from ssdistill.settings import Settings
from ssdistill.settings.registry import LOSSES, METHODS, STEPS
from ssdistill.train.settings import TrainSettings
from ssdistill.train.task import Task

ENOUGH_SAMPLES = 4096
"""Number of images that losses are built for here; a full memory bank would be discarded."""


def require_claims(experiment: Experiment, config: str | Path) -> None:
    """Check that the experiment has claims to verify, before anything is trained.

    Args:
        config: what messages call it.

    Raises:
        UserError: it has no ``paper.claims``.
    """
    if experiment.paper is None or not experiment.paper.claims:
        raise UserError(f"{config}: the config has no paper.claims to verify; use `run`")


def check_trainings(workspace: Workspace, finished: Collection[str] = ()) -> list[str]:
    """Build every network, method and loss once, at initial weights, to find errors early.

    Args:
        finished: roles whose trainings are done, so that no step of theirs needs to be tried.

    Returns:
        notices about settings that work and may not be meant.

    Raises:
        UserError: a method or losses that the networks cannot serve; the key is named.
    """
    experiment = workspace.experiment
    notices = _check_pretraining(workspace, finished)
    _check_recoveries(workspace)
    sections = {"distill": experiment.distill} if experiment.distill else {}
    sections |= {
        f"compare.{row}": settings
        for row, settings in experiment.compare.items()
        if isinstance(settings, DistillSettings)
    }
    for key, settings in sections.items():
        row = "distilled" if key == "distill" else key.removeprefix("compare.")
        notices += _check(workspace, key, settings, tried=row not in finished)
        notices += _large_queues(key, settings, len(workspace.train))
    return list(dict.fromkeys(notices))


def _check_recoveries(workspace: Workspace) -> None:
    """Steps that learn by the losses of the distillation, from a single image at a time."""
    experiment = workspace.experiment
    for variant, steps in experiment.compression_variants.items() if experiment.distill else ():
        for number, settings in enumerate(steps):
            learns = STEPS[settings.kind].learns(settings)
            if learns and getattr(settings, "batch_size", None) == 1:
                key = f"plans.{variant}.{number}" if variant else f"compress.{number}"
                single = {"batch_size": 1, "accumulate": 1}
                _check(workspace, key, experiment.recovery.model_copy(update=single))


def _check_pretraining(workspace: Workspace, finished: Collection[str]) -> list[str]:
    experiment, notices = workspace.experiment, []
    trained = dict(experiment.pretrained)
    for row, settings in experiment.compare.items():
        if isinstance(settings, PretrainedRow):
            teacher = cast("PretrainedTeacher", experiment.teacher)  # required by such a row
            trained[f"compare.{row}"] = (teacher.encoder, settings.pretrain)
    for row, (network, method) in trained.items():
        key = f"{row}.pretrain" if row.startswith("compare.") else "pretrain"
        sizes = {recipe.size for recipe in method.views or () if recipe.size}
        encoder = workspace.build(network)
        notices += check_sizes(encoder, key, sizes, "teacher")
        check_size(lambda m=method, e=encoder: METHODS.build(m, e), key)

        def build(method: Settings = method, network: EncoderSettings = network) -> Task:
            return METHODS.build(method, workspace.build(network))

        try:
            with refusing("these settings"):
                task = build()
        except UserError as error:
            raise UserError(f"{key}: {error}") from None
        if row.removeprefix("compare.") not in finished:
            views = resolve_recipes(
                method.views, METHODS[method.kind].recipes, workspace.source, workspace.train
            )
            size = workspace.image_size
            notices += check_step(task, build, views, size, method.batch_size, key, *_cut(method))
    return notices


def _check(
    workspace: Workspace, key: str, settings: DistillSettings, tried: bool = True
) -> list[str]:
    network = cast("NetworkSettings", workspace.experiment.student)  # required by `distill`
    student = workspace.build(network.encoder)
    sizes = {recipe.size for recipe in settings.views or () if recipe.size}
    notices = check_sizes(student, key, sizes, "student")
    # What is found out about them must not stay with those that are used afterwards.
    teachers = copy.deepcopy(workspace.teachers())
    enough = min(len(workspace.train), ENOUGH_SAMPLES)
    facts = shapes(student, next(iter(teachers.values())), enough)
    for name, loss in settings.losses.items():
        check_size(partial(LOSSES.build, loss, facts), f"{key}.losses.{name}")

    def build() -> Distiller:
        networks = workspace.build(network.encoder), workspace.teachers()
        return assemble(*copy.deepcopy(networks), settings, enough)

    try:
        distiller = build()
    except UserError as error:
        raise UserError(f"{key}.{error}") from None
    except REFUSALS as error:
        raise UserError(f"{key}: {reason_of(error)}; check the settings of its losses") from error
    neighbors = sorted(NEIGHBOR_VIEWS & set(distiller.extra_views))
    if settings.mix and neighbors:
        raise UserError(
            f"{key}.mix: mixed images have no neighbors, which a loss reads ({neighbors[0]}); "
            "remove mix or the loss"
        )
    for teacher in distiller.teachers.values():
        notices += check_sizes(teacher, key, sizes, "teacher")
    strong = ("strong",) * distiller.num_views
    views = resolve_recipes(settings.views, strong, workspace.source, workspace.train)
    if settings.cache:
        notices += check_recording(distiller, settings, expand(views), key, workspace, tried)
    if tried:
        size = workspace.image_size
        cut = _cut(settings)
        notices += check_step(distiller, build, views, size, settings.batch_size, key, *cut)
    return notices


def _cut(settings: TrainSettings) -> tuple[int | None, int]:
    """How the settings cut a batch: images of a micro-batch, and parts."""
    return settings.microbatch, settings.accumulate


def _large_queues(key: str, settings: DistillSettings, num_samples: int) -> list[str]:
    queues = {name: getattr(loss, "queue", None) for name, loss in settings.losses.items()}
    return [
        f"{key}.losses.{name}.queue={queue} exceeds the {num_samples} images: "
        "images are contrasted with their own keys of earlier epochs"
        for name, queue in queues.items()
        if queue and queue > num_samples
    ]
