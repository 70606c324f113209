"""Run an experiment: open the data, run missing stages, write the report."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich import get_console

from ssdistill.chain import compression, evaluation, latency, training
from ssdistill.chain.checks import check_trainings
from ssdistill.chain.describing import describe_data
from ssdistill.chain.executors import Executor, Job
from ssdistill.chain.extending import extensions
from ssdistill.chain.grouping import shared_columns
from ssdistill.chain.plan import plan_stages
from ssdistill.chain.process_group import Processes
from ssdistill.chain.processes import require_single_process
from ssdistill.chain.recording import locked, recording, set_aside
from ssdistill.chain.remote_runs import RemoteRuns
from ssdistill.chain.report import Report, make_report
from ssdistill.chain.requirements import (
    check_batches,
    check_runtimes,
    check_steps,
    notices_of_networks,
)
from ssdistill.chain.shared_training import require_same
from ssdistill.chain.stages import Identity, Stage
from ssdistill.chain.workspace import Workspace, open_workspace
from ssdistill.data.undecoded import undecoded_of
from ssdistill.errors import DamagedFile
from ssdistill.experiment.schema import Experiment
from ssdistill.files import is_remote, user_path
from ssdistill.record.run_record import RunRecord
from ssdistill.record.session import session
from ssdistill.record.wandb_logger import with_columns
from ssdistill.train.interrupt import ignoring_interrupts
from ssdistill.train.progress import console

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


def dry_run(experiment: Experiment, root: str | Path) -> list[PlannedStage]:
    """List the stages of a run and their status; decodes, trains and writes nothing."""
    require_single_process()
    root, remote = _opened(root)
    workspace = open_workspace(experiment, root, decode=False)
    describe_data(workspace)
    check_batches(experiment, len(workspace.train))
    check_steps(experiment)
    stages = plan_stages(workspace)
    _fetch(stages, root, remote)
    planned = [_planned(stage, workspace) for stage in stages]
    for notice in _notices(workspace, planned):
        console.print(f"note: {notice}", style="dim", markup=False)
    return planned


def _planned(stage: Stage, workspace: Workspace) -> PlannedStage:
    # Every hash holds the training images' fingerprint, those of evaluations the test images' too.
    seen = [workspace.train] + [workspace.test] * (stage.kind == "evaluate")
    if undecoded_of(seen):
        return PlannedStage(stage, "to run", known=False)
    return PlannedStage(stage, stage.status(workspace.root))


def run(
    experiment: Experiment, root: str | Path = "runs", executor: Executor | None = None
) -> Report:
    """Run every stage of an experiment that is not finished yet.

    Args:
        experiment: from :func:`ssdistill.experiment.reading.load_experiment`.
        root: the runs folder, or an address such as ``s3://bucket/runs``; finished stages in it are
            reused, whichever experiment made them.
        executor: who does the stages; by default this process.

    Returns:
        the report, already written to ``<root>/<name>-<digest8>/report.html``.

    Raises:
        UserError: anything the user can mend.
        KeyboardInterrupt: after Ctrl-C; running again goes on from there.
    """
    executor = executor or Serial()
    processes = executor.processes_for(experiment)
    root, remote = _opened(root)
    if experiment.device.threads:
        torch.set_num_threads(experiment.device.threads)
    if processes.rank > 0:
        follow(experiment, root, processes)
    workspace = open_workspace(experiment, root, processes=processes)
    workspace.remote = remote
    describe_data(workspace)
    device = experiment.device
    shared_by = max(processes.size, (device.devices or 1) * device.num_nodes)
    check_batches(experiment, len(workspace.train), shared_by)
    check_steps(experiment)
    stages = plan_stages(workspace)
    _fetch(stages, root, remote)
    notices = _notices(workspace, [PlannedStage(s, s.status(root)) for s in stages])
    announce(workspace, stages)
    for notice in notices:
        console.print(f"note: {notice}", style="dim", markup=False)
    identity = Identity.of(experiment)
    with processes.joined():
        require_same(workspace, identity)
        report = _run_stages(workspace, stages, identity, executor)
        processes.dismiss()
    return report


def _opened(root: str | Path) -> tuple[Path, RemoteRuns | None]:
    """The local runs folder, and the remote one that it stands for, if any."""
    if not is_remote(root):
        return user_path(root), None
    remote = RemoteRuns(str(root))
    remote.check()
    return remote.folder, remote


def _fetch(stages: list[Stage], root: Path, remote: RemoteRuns | None) -> None:
    if remote:
        for stage in stages:
            remote.fetch(stage.folder(root))


def follow(experiment: Experiment, root: Path, processes: Processes) -> None:
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


class Serial:
    """An :class:`ssdistill.chain.executors.Executor`: this process, one stage after the other."""

    def __enter__(self) -> "Serial":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def processes_for(self, experiment: Experiment) -> Processes:
        """Return the processes that share trainings with this one."""
        return Processes(experiment.device)

    def finish(self, jobs: Sequence[Job]) -> None:
        """Do the stages in order; the first error ends it."""
        for job in jobs:
            if is_cached(job):
                continue
            console.print(job.label)
            job.workspace.processes.doing = job.label
            record = do(job.stage, job.workspace, job.identity)
            console.print(f"  {duration_of(record)}", style="dim")


def _run_stages(
    workspace: Workspace, stages: list[Stage], identity: Identity, executor: Executor
) -> Report:
    experiment, root = workspace.experiment, workspace.root
    jobs = [
        Job(stage, workspace, identity, f"[{number}/{len(stages)}] {name_of(stage)}")
        for number, stage in enumerate(stages, start=1)
    ]
    with session(_wandb_config(experiment), identity.tags, len(experiment.seeds)):
        renewed: set[Path] = set()
        while True:
            try:
                executor.finish(jobs)
                report = make_report(workspace)
                if workspace.remote:
                    workspace.remote.put(report.folder)
                return report
            except DamagedFile as error:
                folder = _set_aside_for_repeat(error, stages, root)
                if workspace.remote:
                    workspace.remote.forget(folder)
                if folder in renewed:  # what is made anew is not read any better
                    raise
                renewed.add(folder)


def _notices(workspace: Workspace, planned: list[PlannedStage]) -> list[str]:
    """What is noticed of the networks and trainings; those that are finished are not tried."""
    missing = {entry.stage.role for entry in planned if entry.status != "finished"}
    if missing:
        check_runtimes(workspace.experiment)
    finished = {entry.stage.role for entry in planned} - missing
    notices = notices_of_networks(workspace) + check_trainings(workspace, finished)
    waiting = [entry.stage for entry in planned if entry.known and entry.status != "finished"]
    notices += extensions(waiting, len(workspace.train))
    workspace.forget_networks()
    return notices


def _set_aside_for_repeat(error: DamagedFile, stages: list[Stage], root: Path) -> Path:
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


def _wandb_config(experiment: Experiment) -> dict[str, Any]:
    """The configuration of a W&B run that holds a whole experiment, with columns to group by."""
    return with_columns(
        experiment.model_dump(mode="json", by_alias=True), shared_columns(experiment)
    )


def name_of(stage: Stage) -> str:
    """Return how messages name a stage."""
    names = " ".join(dict.fromkeys((stage.kind, stage.role)))
    return f"{names}, seed {stage.seed}"


def is_cached(job: Job) -> bool:
    """Return whether the stage is finished, which is printed; checks what it wrote.

    Raises:
        DamagedFile: that has changed.
        UserError: the labels have changed.
    """
    stage, workspace = job.stage, job.workspace
    if stage.status(workspace.root) != "finished":
        return False
    if workspace.remote and not workspace.remote.has(folder := stage.folder(workspace.root)):
        workspace.remote.put(folder)  # which was cut short before
    workspace.check_finished(stage)
    if stage.kind == "evaluate":
        evaluation.check_labels(stage, workspace)
    console.print(f"{job.label}: cached", style="dim")
    return True


def do(stage: Stage, workspace: Workspace, identity: Identity) -> RunRecord:
    """Run a stage in this process; resume it if interrupted."""
    around = workspace.remote.around(stage) if workspace.remote else nullcontext()
    tracking = workspace.experiment.tracking
    with around, recording(stage, workspace.root, identity, tracking) as tracker:
        if tracker is not None:
            tracker.finish(BODIES[stage.kind](stage, workspace, tracker))
    return stage.written(workspace.root)


def duration_of(record: RunRecord) -> str:
    """Say how long a finished stage took."""
    steps = record.metrics.get("train/steps")
    trained = f", {steps:.0f} steps" if steps else ""
    return f"{record.wall_seconds:.1f} s{trained}"


def announce(workspace: Workspace, stages: list[Stage]) -> None:
    """Print how many stages will run, and whether evaluation is skipped."""
    if not workspace.source.has_labels:
        console.print("no labels: skipping evaluation; label-free metrics only")
    missing = sum(stage.status(workspace.root) != "finished" for stage in stages)
    console.print(f"{len(stages)} stages, {missing} to do")
