"""Time the trainings of an experiment on this machine, without running it."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ssdistill.chain.arithmetic import MEMORY_FORMATS
from ssdistill.chain.benchmark_images import with_generated_images
from ssdistill.chain.benchmark_steps import Turn, alone, parts, wait_for, whole
from ssdistill.chain.checks import check_trainings
from ssdistill.chain.plan import models_of
from ssdistill.chain.recorded_outputs import time_without_teachers
from ssdistill.chain.stages import Stage
from ssdistill.chain.tasks import build_distiller, fresh_encoder, task_of
from ssdistill.chain.training import prepare
from ssdistill.chain.workspace import Workspace, open_workspace
from ssdistill.data.opening import open_source
from ssdistill.errors import UserError, nearest
from ssdistill.experiment.schema import Experiment
from ssdistill.experiment.sections import DistillSettings
from ssdistill.measure.hardware import all_threads
from ssdistill.measure.lightly_loop import LightlyLoop
from ssdistill.measure.throughput import take_turns
from ssdistill.measure.timing import ALONE, LIGHTLY, PARTS, RATE, WHOLE, Format, Timing, key
from ssdistill.settings import short_size
from ssdistill.train.loop import Training
from ssdistill.train.settings import TrainSettings
from ssdistill.train.task import Task

if TYPE_CHECKING:
    from lightning_fabric import Fabric

BATCHES = 2
"""Batches of generated images, of the largest batch size."""
FEWEST_IMAGES = 512
STANDSTILL = 1e-8
"""Learning rate: what is only timed must neither diverge nor collapse."""


def benchmark(
    experiment: Experiment,
    folder: Path,
    *,
    steps: int,
    rounds: int,
    compiled: bool | None = None,
    against_lightly: bool = False,
    own_images: bool = False,
    only: str | None = None,
    announce: Callable[[str, int, str, int], None] = lambda role, total, program, number: None,
) -> list[Timing]:
    """Time every training of the first seed: pretraining, and distillation from its teachers.

    Teachers that would be trained have their initial weights, which take as long.

    Args:
        folder: an empty folder for temporary files.
        steps: optimizer steps per turn.
        rounds: turns of each program.
        compiled: also time compiled encoders; None does so on a GPU.
        against_lightly: also time lightly's loop, in float32.
        own_images: read the images of the config rather than generate some of their size.
        only: role of the one training to time; None for all.
        announce: called before every turn with the role, the number of turns of the training,
            the program, and the number of the turn.

    Raises:
        UserError: nothing is trained; lightly's loop does something else; whatever a run says.
    """
    trained = _trainings_alone(experiment)
    if not own_images:
        sections = (trained.pretrain, trained.distill)
        batches = [BATCHES * section.batch_size for section in sections if section is not None]
        trained = with_generated_images(trained, max([FEWEST_IMAGES, *batches]), folder)
    workspace = open_workspace(trained, folder / "runs")
    if not own_images:
        # Views depend on the kind of data.
        workspace.source.default_recipe = _recipe(experiment)
    if experiment.device.threads:
        torch.set_num_threads(experiment.device.threads)
    stages = _stages_of(workspace, only)
    if against_lightly:
        _require_simclr(stages, workspace)
    check_trainings(workspace)
    workspace.forget_networks()
    if compiled is None:
        compiled = workspace.device.type == "cuda"
    return [
        _timed(stage, workspace, steps, rounds, compiled, against_lightly, announce)
        for stage in stages.values()
    ]


def _trainings_alone(experiment: Experiment) -> Experiment:
    """The experiment on one device, without what follows the trainings."""
    device = experiment.device.model_copy(update={"devices": None, "num_nodes": 1})
    tracking = experiment.tracking.model_copy(update={"wandb": "disabled", "tensorboard": False})
    cut = {"compress": (), "plans": {}, "compare": {}, "control": None, "evaluate": None}
    return experiment.model_copy(update=cut | {"device": device, "tracking": tracking})


def _stages_of(workspace: Workspace, only: str | None) -> dict[str, Stage]:
    """The trainings of the first seed by role, or the only one to time."""
    stages = models_of(workspace, workspace.experiment.seeds[0])
    stages = {role: s for role, s in stages.items() if s.kind in ("pretrain", "distill")}
    if not stages:
        raise UserError("benchmark: the config trains nothing; choose one that does")
    if only is not None and only not in stages:
        raise UserError(
            f"--only {only}: unknown training{nearest(only, stages)}; known: {', '.join(stages)}"
        )
    return {role: stage for role, stage in stages.items() if only in (None, role)}


def _recipe(experiment: Experiment) -> str | None:
    return open_source(experiment.data).default_recipe


def _require_simclr(stages: dict[str, Stage], workspace: Workspace) -> None:
    kinds = [s.config["method"]["kind"] for s in stages.values() if s.kind == "pretrain"]
    if kinds != ["simclr"]:
        found = f"pretrain.kind={kinds[0]}" if kinds else "no pretraining"
        raise UserError(
            f"--against lightly compares one pretraining by simclr, got {found}; "
            "set pretrain.kind=simclr, or remove --against"
        )
    if len(workspace.train.mean) != len("RGB") or not isinstance(workspace.image_size, int):
        raise UserError(
            "--against lightly requires square images of three channels; remove --against"
        )


def _timed(
    stage: Stage,
    workspace: Workspace,
    steps: int,
    rounds: int,
    compiled: bool,
    against_lightly: bool,
    announce: Callable[[str, int, str, int], None],
) -> Timing:
    timing = Timing(stage.role)
    chosen, fabric = _prepared(stage, workspace, timing)
    in_use = Format(chosen.precision, _layout(chosen), workspace.experiment.device.compile)
    timing.what, timing.in_use = _described(chosen, stage), in_use
    prepared = {in_use: (chosen, fabric)}
    for other in (replace(in_use, precision="fp32"), replace(in_use, compiled=True)):
        if other not in prepared and (compiled or other.compiled == in_use.compiled):
            prepared[other] = _prepared(stage, _with_format(workspace, other), timing)
    timing.formats = sorted(prepared, key=lambda f: (f.precision != "fp32", f.compiled))
    folder = workspace.root / "records" / stage.role
    turns: dict[str, Turn] = {}
    for number_format in timing.formats:
        training, fabric = prepared[number_format]
        place = folder / str(number_format)
        turns[key(WHOLE, number_format)] = whole(training, fabric, place, steps)
        turns[key(ALONE, number_format)] = alone(training, fabric, steps)
        turns[key(PARTS, number_format)] = parts(training, fabric, steps)
    if against_lightly and stage.kind == "pretrain":
        turns[LIGHTLY] = _lightly(stage, workspace, chosen, steps)
    count = iter(range(len(turns) * (rounds + 1)))

    def say(program: str, _: int) -> None:
        announce(stage.role, len(turns) * (rounds + 1), program, next(count))

    with torch.random.fork_rng(devices=list(range(torch.cuda.device_count()))):
        timing.values = take_turns(turns, rounds, say)
    wait_for(workspace.device)
    return timing


def _prepared(stage: Stage, workspace: Workspace, timing: Timing) -> tuple[Training, "Fabric"]:
    """The training of a stage, ready to start, in the format that the settings choose."""
    task, settings = _task(stage, workspace)
    if isinstance(settings, DistillSettings) and settings.cache is not None:
        time_without_teachers(task)
        notice = "outputs of teachers are recorded (distill.cache); reading them is not timed"
        timing.notices = list(dict.fromkeys([*timing.notices, notice]))
    training, fabric = prepare(task, settings, stage, workspace)
    training.optim = training.optim.model_copy(update={"lr": STANDSTILL})
    training.progress = False
    timing.step_seconds = timing.step_seconds or _format_seconds(workspace)
    return training, fabric


def _task(stage: Stage, workspace: Workspace) -> tuple[Task, TrainSettings]:
    if stage.kind != "distill":
        return task_of(stage, workspace)
    settings = DistillSettings.model_validate(stage.config["training"])
    student, teachers = fresh_encoder(stage), workspace.teachers()
    return build_distiller(student, teachers, settings, stage, workspace), settings


def _format_seconds(workspace: Workspace) -> dict[str, float]:
    """Seconds per step of the formats among which the last one was chosen."""
    file = workspace.root / "machine" / "precision.json"
    if not file.exists():
        return {}
    *_, last = json.loads(file.read_text()).values()
    return dict(last["seconds"])


def _with_format(workspace: Workspace, number_format: Format) -> Workspace:
    update = {
        "precision": number_format.precision,
        "memory_format": number_format.memory_format,
        "compile": number_format.compiled,
    }
    device = workspace.experiment.device.model_copy(update=update)
    experiment = workspace.experiment.model_copy(update={"device": device})
    return replace(workspace, experiment=experiment)


def _lightly(stage: Stage, workspace: Workspace, training: Training, steps: int) -> Turn:
    encoder, raw = fresh_encoder(stage), workspace.source.split("train")
    loop = LightlyLoop(
        encoder.net,
        encoder.embed_dim,
        raw.image,
        len(raw),
        size=encoder.spec.image_size if isinstance(encoder.spec.image_size, int) else 0,
        batch_size=training.loader.batch_size,
        workers=all_threads(),
        device=workspace.device,
    )
    return lambda: {RATE: loop.turn(steps)}


def _described(training: Training, stage: Stage) -> str:
    task = training.task
    if stage.kind == "distill":
        losses = " + ".join(stage.config["training"]["losses"])
        teachers = ", ".join(teacher.name for teacher in task.teachers.values())
        how = f"{losses}, {teachers} to {task.encoder.name}"
    else:
        how = f"{stage.config['method']['kind']}, {task.encoder.name}"
    size = short_size(training.image_size or task.encoder.spec.image_size)
    return (
        f"{how}, batch {training.loader.batch_size}, {len(training.recipes)} views of {size} pixels"
    )


def _layout(training: Training) -> str:
    return next(k for k, layout in MEMORY_FORMATS.items() if layout == training.memory_format)
