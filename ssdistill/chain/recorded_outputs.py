"""Recorded outputs of teachers in a distillation: what is checked before, and their opening."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from ssdistill.chain.workspace import Workspace
from ssdistill.data.extra import NEIGHBOR_VIEWS
from ssdistill.data.loader import Loader
from ssdistill.data.recipes import ViewRecipe
from ssdistill.data.view_plan import ViewPlan
from ssdistill.distill.cache.filling import LiveOutputs
from ssdistill.distill.cache.opening import TeacherOutputs, open_outputs, passes_text
from ssdistill.distill.cache.parts import check_free
from ssdistill.distill.cache.rules import bytes_per_image, refuse_live
from ssdistill.distill.cache.sources import FirstOutputs, Recorded
from ssdistill.distill.distiller import Distiller
from ssdistill.errors import UserError
from ssdistill.experiment.sections import DistillSettings
from ssdistill.report.charts.axes import bytes_label
from ssdistill.train.loop import Training
from ssdistill.train.progress import console
from ssdistill.train.task import Task

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def check_recording(
    distiller: Distiller,
    settings: DistillSettings,
    recipes: Sequence[ViewRecipe],
    key: str,
    workspace: Workspace,
    to_do: bool,
) -> list[str]:
    """Check that the outputs the losses read can be recorded, and that the disk holds them.

    Args:
        recipes: one per view.
        key: of the settings, for messages.
        to_do: whether the training is not finished.

    Returns:
        what will be written, and a warning where it is more than the training reads.

    Raises:
        UserError: a loss, mixed views or maps that require live teachers; too small a disk.
    """
    assert settings.cache is not None
    passes, count = settings.cache.views, len(workspace.train)
    try:
        refuse_live(distiller, mixed=settings.mix is not None)
    except UserError as error:
        raise UserError(f"{key}.{error}") from None
    if not to_do:
        return []
    sizes = [recipe.size or workspace.image_size for recipe in recipes]
    per_image = sum(bytes_per_image(distiller, sizes).values())
    needed, folder = per_image * count * passes, workspace.root / "teacher_outputs"
    check_free(folder, needed, f"{key}.cache")
    seeds = "" if len(workspace.experiment.seeds) == 1 or settings.seed is not None else " per seed"
    notices = [
        f"{key}.cache.views={passes}: a run records up to {bytes_label(needed)}{seeds} of "
        f"teachers' outputs in {folder} ({per_image:,} bytes per image and pass)"
    ]
    epochs = settings.num_steps(count // settings.batch_size) / (count // settings.batch_size)
    if epochs <= passes:
        notices.append(
            f"{key}.cache.views={passes}: the training takes {epochs:.3g} passes over the images; "
            "recording pays if more are taken than recorded, or if other students read the same"
        )
    return notices


def time_without_teachers(task: Task) -> None:
    """Let steps that are timed, to choose their arithmetic, read outputs instead of encoding."""
    cast("Distiller", task).source = FirstOutputs()


def use_recorded_outputs(
    training: Training, fabric: "Fabric", workspace: Workspace
) -> dict[str, Any]:
    """Open, or record, the outputs of a distillation's teachers; its loader then reads them.

    Returns:
        bytes of all outputs, and the seconds that recording, or verifying, them took.
    """
    began = time.perf_counter()
    distiller = cast("Distiller", training.task)
    refuse_live(distiller, mixed=training.mix is not None)
    # As `fit` has them later: what a teacher gives depends on it, if only in the last digits.
    distiller.to(fabric.device, memory_format=training.memory_format)  # pyright: ignore[reportCallIssue]
    opened: dict[str, TeacherOutputs] = {}
    # A resumed training has the random numbers of one that was never interrupted.
    with torch.random.fork_rng(devices=list(range(torch.cuda.device_count()))):
        for name in distiller.teachers:
            live = live_outputs(name, training, fabric)
            opened[name] = open_outputs(
                workspace.root, live, workspace.train, training.precision, console.print
            )
    distiller.source = Recorded({name: outputs.layout for name, outputs in opened.items()})
    read_recorded(training.loader, opened)
    num_bytes = sum(outputs.parts.num_bytes for outputs in opened.values())
    names = " and ".join(f"'{name}'" for name in opened)
    console.print(
        f"  outputs of {names} are read from {workspace.root / 'teacher_outputs'}: "
        f"{bytes_label(num_bytes)}, {passes_text(training.passes or 0)}",
        style="dim",
    )
    return {"cache/bytes": num_bytes, "cache/seconds": time.perf_counter() - began}


def live_outputs(name: str, training: Training, fabric: "Fabric") -> LiveOutputs:
    """A teacher of a distillation with the views that it encodes, as its training makes them."""
    distiller, plan = cast("Distiller", training.task), training.plan
    views = distiller.teacher_views(name, [view.size for view in plan.plain])
    return LiveOutputs(
        name,
        distiller.teachers[name],
        tuple(views),
        training.loader,
        _plan_of(plan, views),
        context=fabric.autocast,
        convert=fabric.strategy.precision.convert_input,
        memory_format=training.memory_format,
        batch_size=training.loader.batch_size,
    )


def _plan_of(plan: ViewPlan, views: Sequence[int | str]) -> ViewPlan:
    """The plan of some views; rotated ones are made of the first."""
    extra = tuple(view for view in views if isinstance(view, str))
    if NEIGHBOR_VIEWS & set(extra):
        raise ValueError(f"views of neighbors cannot be recorded: {', '.join(extra)}")
    numbers = {view for view in views if isinstance(view, int)} | ({0} if extra else set())
    return replace(plan, extra=extra, chosen=tuple(sorted(numbers)))


def read_recorded(loader: Loader, opened: Mapping[str, TeacherOutputs]) -> None:
    """Have a loader bring the recorded rows of every batch."""

    def rows_of(rows_B: np.ndarray, epoch: int) -> dict[str, np.ndarray]:
        return {name: outputs.rows_of(rows_B, epoch) for name, outputs in opened.items()}

    loader.recorded = rows_of
