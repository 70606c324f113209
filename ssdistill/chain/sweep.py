"""Run a sweep: an experiment at many points that share stages, and the choice of one of them.

What chooses is a label-free metric of a model, or a probe on a split of the training labels; test
labels have no say. Every point is an experiment like any other, in the same runs folder: stages
with the same hash run once, whichever points have them.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import mean

from ssdistill.chain.plan import plan_stages
from ssdistill.chain.processes import count_processes
from ssdistill.chain.report import Report
from ssdistill.chain.run import run as run_experiment
from ssdistill.chain.stages import Identity
from ssdistill.chain.sweep_points import (
    ListSearch,
    Outcome,
    Point,
    Search,
    listed_points,
    read_outcomes,
    validated_points,
    write_outcomes,
)
from ssdistill.chain.sweep_tpe import TpeSearch, require_optuna, storage_of
from ssdistill.chain.sweep_values import chosen_by, held_out_probe, values_of
from ssdistill.chain.workspace import Workspace, open_workspace
from ssdistill.errors import (
    StoppedEarly,
    UserError,
    is_out_of_memory,
    shortened,
    was_interrupted,
)
from ssdistill.evaluate.held_out import training_labels_sha256
from ssdistill.experiment.reading import Written
from ssdistill.experiment.schema import Experiment
from ssdistill.experiment.sweep import SweepSettings
from ssdistill.files import disk_is_full, locked_by, user_path
from ssdistill.record.wandb_environment import in_sweep
from ssdistill.train.progress import console

SWEEPS = "sweeps"
"""Folder, in the runs folder, of the folders of sweeps."""
AT_ONCE = 16
"""Points whose stages are handed over together where they run side by side."""


@dataclass(frozen=True)
class Sweep:
    """A sweep whose settings and points have been checked.

    Attributes:
        written: the config.
        settings: its section ``sweep``.
        base: the experiment without its sweep.
        points: of a grid or a random search; None where points follow from others.
        experiments: the experiment at each of them.
        workspace: of the base.
        role: the model that the metric is read from.
        watched: the training that is stopped early.
    """

    written: Written
    settings: SweepSettings
    base: Experiment
    points: list[dict] | None
    experiments: list[Experiment]
    workspace: Workspace
    role: str
    watched: str

    @property
    def folder(self) -> Path:
        """Of the sweep's page and records, ``<root>/sweeps/<name>-<digest8>``."""
        return self.workspace.root / SWEEPS / f"{self.base.name}-{self.digest[:8]}"

    def at(self, point: Point) -> Experiment:
        """The experiment at a point."""
        return self.written.at(point.values).as_point(point.watched)

    @cached_property
    def digest(self) -> str:
        """sha256 of everything that its numbers follow from, but for how many points there are."""
        settings = self.settings.model_dump(mode="json", exclude={"points", "storage"})
        if settings["at_once"] == 1:  # as before points could be chosen together
            del settings["at_once"]
        reads_labels = self.settings.reads_labels
        identity = {
            "experiment": Identity.of(self.base).digest,
            "stages": [stage.digest for stage in plan_stages(self.workspace)],
            "sweep": settings,
            # Numbers of points follow from their order.
            "order": list(self.settings.varied),
            "labels": training_labels_sha256(self.workspace.train) if reads_labels else "",
        }
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    @cached_property
    def held_out_counts(self) -> tuple[int, int]:
        """Training images that the probe of held-out labels is fitted to, and tested on."""
        return held_out_probe(self.settings, self.workspace).counts


def open_sweep(written: Written, root: str | Path, *, decode: bool = True) -> Sweep:
    """Check a sweep: its settings, and those of every point that is known beforehand.

    Args:
        written: a config with a section ``sweep``.
        root: the runs folder.
        decode: without it, images never seen stay as they are.

    Raises:
        UserError: what is wrong, and with which parameter.
    """
    experiment = written.experiment()
    settings, base = experiment.sweep, experiment.as_point()
    if settings is None:
        raise UserError(f"{written.file}: has no sweep section; add one")
    if count_processes(base.device) > 1:
        raise UserError(
            "sweep: its trainings run in one process each; set device.devices=1 and "
            "device.num_nodes=1, without torchrun or srun"
        )
    if in_sweep():
        raise UserError("sweep: an agent of a W&B sweep runs single experiments; set sweep=null")
    if settings.search == "tpe":
        require_optuna()
    points = listed_points(settings)
    experiments = validated_points(written, settings, points)
    workspace = open_workspace(base, user_path(root), decode=decode)
    role, watched = chosen_by(settings, workspace)
    return Sweep(written, settings, base, points, experiments, workspace, role, watched)


def run_sweep(
    sweep: Sweep,
    on_outcome: Callable[[dict[int, Outcome]], object],
    run: Callable[[Experiment, Path], Report] | None = None,
    together: Callable[[dict[str, Experiment], Path], object] | None = None,
) -> dict[int, Outcome]:
    """Run every point that has not ended yet.

    Args:
        on_outcome: called with all outcomes so far, at the start and whenever a point has ended.
        run: of an experiment in a runs folder; None for :func:`ssdistill.chain.run.run`.
        together: does what it can of the stages of several points before they are run in turn.

    Returns:
        all outcomes, by number of the point.

    Raises:
        UserError: no point has finished.
        KeyboardInterrupt: after Ctrl-C; the same call goes on from there.
    """
    folder = sweep.folder
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        outcomes = read_outcomes(folder)
        search = _search(sweep, outcomes)
        if lost := {o.point: o for o in search.ended() if o.point not in outcomes}:
            outcomes |= lost
            write_outcomes(folder, outcomes)
        on_outcome(outcomes)
        known_before = AT_ONCE if together else 1
        count = sweep.settings.at_once if sweep.points is None else known_before
        while points := search.ask(count):
            if together:
                together({str(p.number + 1): sweep.at(p) for p in points}, sweep.workspace.root)
            for point, outcome in _outcomes(sweep, points, outcomes, search.total, run):
                outcomes[point.number] = outcome
                write_outcomes(folder, outcomes)
                search.tell(point, outcome)
                on_outcome(outcomes)
    if not any(outcome.status == "finished" for outcome in outcomes.values()):
        first = min(outcomes.items())[1]
        raise UserError(
            f"sweep: none of {len(outcomes)} points finished; the first: {first.reason}"
        )
    return outcomes


def _search(sweep: Sweep, outcomes: dict[int, Outcome]) -> Search:
    if sweep.points is not None:
        return ListSearch(sweep.points, outcomes)
    storage = storage_of(sweep.settings, sweep.folder)
    return TpeSearch(sweep.settings, storage, sweep.folder.name, sweep.watched)


def _outcomes(
    sweep: Sweep,
    points: Sequence[Point],
    known: dict[int, Outcome],
    total: int,
    run: Callable[[Experiment, Path], Report] | None,
) -> Iterator[tuple[Point, Outcome]]:
    """What becomes of points that may run side by side."""
    for point in points:
        # Killed between the line of the record and the word to the database.
        if (outcome := known.get(point.number)) is not None and outcome.values == point.values:
            yield point, outcome
            continue
        console.print(f"point {point.number + 1}/{total}: {point}", style="bold", markup=False)
        outcome = run_point(sweep, point, run)
        console.print(f"point {point.number + 1}/{total}: {_result(sweep, outcome)}", markup=False)
        yield point, outcome


def run_point(
    sweep: Sweep, point: Point, run: Callable[[Experiment, Path], Report] | None = None
) -> Outcome:
    """Run the experiment at a point, and read the metric that chooses.

    Args:
        run: of an experiment in a runs folder; None for :func:`ssdistill.chain.run.run`.

    Raises:
        UserError: the disk is full.
        KeyboardInterrupt: after Ctrl-C.
    """
    root = sweep.workspace.root
    try:
        experiment = sweep.at(point)
        report = (run or run_experiment)(experiment, root)
        by_seed = values_of(sweep.settings, experiment, report, sweep.role, root)
    except StoppedEarly as stopped:
        return Outcome(point.number, point.values, "stopped", reason=str(stopped))
    except Exception as error:
        wrong = isinstance(error, UserError)
        if disk_is_full(error) or was_interrupted(error) or not (wrong or is_out_of_memory(error)):
            raise
        reason = str(error) if wrong else f"not enough memory ({error})"
        return Outcome(point.number, point.values, "failed", reason=shortened(reason, 300))
    model = report.models.get(sweep.role)
    return Outcome(
        point.number,
        point.values,
        "finished",
        mean(by_seed.values()),
        {str(seed): value for seed, value in by_seed.items()},
        report=report.folder.name,
        model=model.relative_to(root).as_posix() if model else "",
    )


def _result(sweep: Sweep, outcome: Outcome) -> str:
    if outcome.value is not None:
        return f"{sweep.settings.metric} {outcome.value:.6g}"
    return f"{'stopped early' if outcome.status == 'stopped' else 'failed'}: {outcome.reason}"


def _locked(folder: Path) -> AbstractContextManager[None]:
    waiting = f"{folder.name}: waiting for another process to finish this sweep"
    return locked_by(folder / ".lock", on_wait=lambda: console.print(waiting))
