"""Record what is done as the work of a stage: one process at a time, in the stage's folder."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from ssdistill.chain.grouping import stage_columns
from ssdistill.chain.stages import Identity, Stage
from ssdistill.errors import DamagedFile, UserError, shortened
from ssdistill.files import locked_by
from ssdistill.record.metrics_file import METRICS_FILE, read_metrics
from ssdistill.record.run import Run
from ssdistill.record.run_record import RunRecord, kind_of
from ssdistill.record.tracker import Tracker, TrackingSettings
from ssdistill.train.loop import CHECKPOINT
from ssdistill.train.progress import console

Body = Callable[[Stage, Tracker], dict[str, Any]]
"""The work of one kind: fills the folder of the tracker's run and returns the final metrics."""


@contextmanager
def recording(
    stage: Stage, root: Path, identity: Identity, tracking: TrackingSettings
) -> Iterator[Tracker | None]:
    """Record what is done in the context as the stage, or as its resumption if it was interrupted.

    Yields None if it is finished; else a tracker, which the final metrics are given to.

    Raises:
        UserError: another error of the user's, or a hash that clashes with another's folder.
        KeyboardInterrupt: after Ctrl-C; the record says ``interrupted`` then.
    """
    folder = stage.folder(root)
    with locked(folder):
        _set_aside_if_damaged(stage, root)
        record = stage.record(root)
        if record and record.status == "finished":
            yield None
            return
        run = Run(
            folder,
            stage=stage.kind,
            kind=kind_of(stage.config),
            role=stage.role,
            columns={**identity.columns, **stage_columns(stage)},
            digest=stage.digest,
            seed=stage.seed,
            name=identity.name,
            group=identity.group,
            profile=identity.profile,
            fingerprint=stage.fingerprint,
            parents=_lineage(stage, root),
            config=stage.config,
        )
        with Tracker(run, tracking, (*identity.tags, stage.role)) as tracker:
            yield tracker
        (folder / CHECKPOINT).unlink(missing_ok=True)


def execute(
    stage: Stage, root: Path, body: Body, identity: Identity, tracking: TrackingSettings
) -> RunRecord:
    """Run the stage unless it is finished; resume it if it was interrupted.

    Raises:
        UserError, KeyboardInterrupt: as :func:`recording`.
    """
    with recording(stage, root, identity, tracking) as tracker:
        if tracker is not None:
            tracker.finish(body(stage, tracker))
    return stage.written(root)


def _lineage(stage: Stage, root: Path) -> dict[str, Any]:
    """Hash, seed and weights of each parent."""
    lineage = {}
    for name, parent in stage.parents.items():
        artifacts = parent.written(root).artifacts
        sha256 = next((entry["sha256"] for entry in artifacts.values()), None)
        lineage[name] = {"digest": parent.digest, "seed": parent.seed, "sha256": sha256}
    return lineage


def set_aside(folder: Path, reason: object) -> Path:
    """Rename a damaged stage's folder with a warning and return its new path; deletes nothing."""
    number = 1
    while os.path.lexists(place := folder.with_name(f"damaged-{folder.name}-{number}")):
        number += 1
    os.rename(folder, place)
    console.print(f"  {shortened(reason, 300)}: rerunning it; the old folder is now {place}")
    return place


def _set_aside_if_damaged(stage: Stage, root: Path) -> None:
    """Move a stage's folder away if its own files would prevent a rerun."""
    folder = stage.folder(root)
    if os.path.lexists(folder) and not folder.is_dir():
        raise UserError(
            f"{folder}: expected a stage's folder, found a file; move it away: "
            f"mv '{folder}' '{folder}.old'"
        )
    try:
        stage.record(root)
    except DamagedFile as error:
        set_aside(folder, f"{error.path} is damaged ({error.reason})")
        return
    metrics = folder / METRICS_FILE
    if os.path.lexists(metrics) and not metrics.is_file():
        set_aside(folder, f"{metrics} is not a file")
        return
    try:
        read_metrics(folder)
    except UserError as error:
        set_aside(folder, error)


def locked(folder: Path) -> AbstractContextManager[None]:
    """Lock the stage, with a message while waiting.

    Raises:
        UserError: something else stands in the place of the lock.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    waiting = f"  {folder.parent.name}: waiting for another process to finish it"
    lock = folder.with_name(f".{folder.name}.lock")
    return locked_by(lock, on_wait=lambda: console.print(waiting))
