"""Run an experiment: open the data, run missing stages, write the report."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich import get_console

from ssdistill.chain import compression, evaluation, latency, training
from ssdistill.chain.checks import check_trainings
from ssdistill.chain.grouping import shared_columns
from ssdistill.chain.plan import plan_stages
from ssdistill.chain.process_group import Processes
from ssdistill.chain.processes import require_single_process
from ssdistill.chain.report import Report, make_report
from ssdistill.chain.requirements import (
    adapted_layers,
    check_batches,
    check_runtimes,
    check_steps,
    chosen_stems,
)
from ssdistill.chain.shared_training import require_same
from ssdistill.chain.stages import Identity, Stage, execute, locked, set_aside
from ssdistill.chain.workspace import Workspace, open_workspace
from ssdistill.data.displaying import channels_text
from ssdistill.data.originals import Originals
from ssdistill.data.recipes_of_images import replacement_notice
from ssdistill.data.undecoded import Undecoded, undecoded_of
from ssdistill.errors import DamagedFile
from ssdistill.experiment.schema import Experiment
from ssdistill.files import user_path
from ssdistill.record.session import session
from ssdistill.record.wandb_logger import with_columns
from ssdistill.report.charts.axes import bytes_label
from ssdistill.settings import size_text
from ssdistill.train.interrupt import ignoring_interrupts
from ssdistill.train.progress import console

MOST_WINDOWS = 5
"""Channels whose windows are listed."""
BODIES = {
    "initialize": training.initialize,
    "load": training.load_teacher,
    "pretrain": training.pretrain,
    "distill": training.distill,
    "compress": compression.compress,
    "evaluate": evaluation.evaluate,
    "latency": latency.latency,
}
"""The work of each kind of stage."""


@dataclass(frozen=True)
class PlannedStage:
    """One line of ``--dry-run``.

    Attributes:
        known: whether its hash is the one that a run will find; it is not while the images it
            depends on have not been read.
    """

    stage: Stage
    status: str
    known: bool = True


def dry_run(experiment: Experiment, root: Path) -> list[PlannedStage]:
    """List the stages of a run and their status; decodes, trains and writes nothing."""
    require_single_process()
    workspace = open_workspace(experiment, root, decode=False)
    describe_data(workspace)
    check_batches(experiment, len(workspace.train))
    check_steps(experiment)
    planned = [_planned(stage, workspace) for stage in plan_stages(workspace)]
    for notice in _notices(workspace, planned):
        console.print(f"note: {notice}", style="dim", markup=False)
    return planned


def _planned(stage: Stage, workspace: Workspace) -> PlannedStage:
    # Every hash holds the training images' fingerprint, those of evaluations the test images' too.
    seen = [workspace.train] + [workspace.test] * (stage.kind == "evaluate")
    if undecoded_of(seen):
        return PlannedStage(stage, "to run", known=False)
    return PlannedStage(stage, stage.status(workspace.root))


def run(experiment: Experiment, root: str | Path = "runs") -> Report:
    """Run every stage of an experiment that is not finished yet.

    Args:
        experiment: from :func:`ssdistill.experiment.reading.load_experiment`.
        root: the runs folder; finished stages in it are reused, whichever experiment made them.

    Returns:
        the report, already written to ``<root>/<name>-<digest8>/report.html``.

    Raises:
        UserError: anything the user can mend.
        KeyboardInterrupt: after Ctrl-C; running again goes on from there.
    """
    root, processes = user_path(root), Processes(experiment.device)
    if experiment.device.threads:
        torch.set_num_threads(experiment.device.threads)
    if processes.rank > 0:
        _follow(experiment, root, processes)
    workspace = open_workspace(experiment, root, processes=processes)
    describe_data(workspace)
    check_batches(experiment, len(workspace.train), processes.size)
    check_steps(experiment)
    stages = plan_stages(workspace)
    notices = _notices(workspace, [PlannedStage(s, s.status(root)) for s in stages])
    announce(workspace, stages)
    for notice in notices:
        console.print(f"note: {notice}", style="dim", markup=False)
    identity = Identity.of(experiment)
    with processes.joined():
        require_same(workspace, identity)
        report = _run_stages(workspace, stages, identity)
        processes.dismiss()
    return report


def _follow(experiment: Experiment, root: Path, processes: Processes) -> None:
    """Take part in the work of process 0; leave when there is no more.

    Raises:
        SystemExit: always; process 0 says what there is to say.
    """
    console.quiet = get_console().quiet = True
    with processes.joined(), ignoring_interrupts():
        workspace = open_workspace(experiment, root, processes=processes)
        require_same(workspace, Identity.of(experiment))
        processes.take_part()
    raise SystemExit(0)


def _run_stages(workspace: Workspace, stages: list[Stage], identity: Identity) -> Report:
    experiment, root = workspace.experiment, workspace.root
    with session(_shown(experiment), identity.tags, len(experiment.seeds)):
        renewed: set[Path] = set()
        while True:
            try:
                for number, stage in enumerate(stages, start=1):
                    _do(stage, workspace, identity, f"[{number}/{len(stages)}]")
                return make_report(workspace)
            except DamagedFile as error:
                folder = _renew(error, stages, root)
                if folder in renewed:  # what is made anew is not read any better
                    raise
                renewed.add(folder)


def _notices(workspace: Workspace, planned: list[PlannedStage]) -> list[str]:
    """What is noticed of the networks and trainings; those that are finished are not tried."""
    missing = {entry.stage.role for entry in planned if entry.status != "finished"}
    if missing:
        check_runtimes(workspace.experiment)
    finished = {entry.stage.role for entry in planned} - missing
    notices = [*chosen_stems(workspace), *adapted_layers(workspace)]
    notices += check_trainings(workspace, finished)
    workspace.forget_networks()
    return notices


def _renew(error: DamagedFile, stages: list[Stage], root: Path) -> Path:
    """Move the finished stage aside that a damaged file belongs to; it is then made anew.

    Raises:
        DamagedFile: the file belongs to none of the stages.
    """
    for stage in stages:
        folder = stage.folder(root)
        if folder in error.path.parents and folder.exists():
            with locked(folder):
                set_aside(folder, f"{error.path} is damaged ({error.reason})")
            return folder
    raise error


def _shown(experiment: Experiment) -> dict[str, Any]:
    """The configuration of a W&B run that holds a whole experiment, with columns to group by."""
    return with_columns(
        experiment.model_dump(mode="json", by_alias=True), shared_columns(experiment)
    )


def _do(stage: Stage, workspace: Workspace, identity: Identity, position: str) -> None:
    names = " ".join(dict.fromkeys((stage.kind, stage.role)))
    label = f"{position} {names}, seed {stage.seed}"
    if stage.status(workspace.root) == "finished":
        workspace.check_finished(stage)
        if stage.kind == "evaluate":
            evaluation.check_labels(stage, workspace)
        console.print(f"{label}: cached", style="dim")
        return
    console.print(label)
    workspace.processes.doing = label

    def body(stage: Stage, tracker):
        return BODIES[stage.kind](stage, workspace, tracker)

    record = execute(stage, workspace.root, body, identity, workspace.experiment.tracking)
    steps = record.metrics.get("train/steps")
    trained = f", {steps:.0f} steps" if steps else ""
    console.print(f"  {record.wall_seconds:.1f} s{trained}", style="dim")


def announce(workspace: Workspace, stages: list[Stage]) -> None:
    """Print how many stages will run, and whether evaluation is skipped."""
    if not workspace.source.has_labels:
        console.print("no labels: skipping evaluation; label-free metrics only")
    missing = sum(stage.status(workspace.root) != "finished" for stage in stages)
    console.print(f"{len(stages)} stages, {missing} to do")


def describe_data(workspace: Workspace) -> None:
    """Describe the images, their classes and window, and likely problems with them."""
    train, test, size = workspace.train, workspace.test, workspace.image_size
    lines = [
        f"{workspace.source.description}: {len(train)} training and {len(test)} test images, "
        f"{size_text(size)}{channels_text(train)}"
    ]
    if isinstance(train, Originals):
        lines.append(
            f"views are cut from the originals, decoded whenever they are read "
            f"(data.pixels={workspace.experiment.data.pixels})"
        )
    if workspace.classes:
        lines.append(workspace.classes)
    window = getattr(train, "window", None)
    if window:
        lines.append(
            f"more than 8 bits: black is {window[0]:g}, white {window[1]:g} "
            f"(data.window={workspace.experiment.data.window})"
        )
    elif windows := getattr(train, "windows", None):
        named = [f"{train.form.named(k)} {a:g} to {b:g}" for k, (a, b) in enumerate(windows)]
        more = ", …" if len(named) > MOST_WINDOWS else ""
        named = named[:MOST_WINDOWS]
        lines.append(f"more than 8 bits, as fractions of a range: {', '.join(named)}{more}")
    lines += not_decoded(undecoded_of((train, test)))
    if notice := replacement_notice(train):
        lines.append(notice)
    for line in lines:
        console.print(line, markup=False)
    for warning in workspace.warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False)


def not_decoded(undecoded: list[Undecoded]) -> list[str]:
    """One line about what a run would do with images that nobody has read; none without them."""
    if not undecoded:
        return []
    counts = " and ".join(
        f"{len(split):,} {'training' if split.split == 'train' else split.split} images"
        for split in undecoded
    )
    needed, root = bytes_label(sum(split.num_bytes for split in undecoded)), undecoded[0].root
    if undecoded[0].to_store:
        work = f"a run stores {counts} in {root} ({needed})"
    else:
        work = f"a run reads the originals of {counts} and keeps an index in {root} ({needed})"
    return [f"not decoded yet: {work}; hashes, and checks of pixels and labels, need that"]
