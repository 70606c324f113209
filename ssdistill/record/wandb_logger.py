"""Weights & Biases as a logger of the record. The only file that imports wandb."""

import json
import logging
import re
import shutil
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ssdistill.record.run import RunRecord
from ssdistill.record.tracking_settings import TrackingSettings
from ssdistill.record.wandb_environment import all_tags, run_arguments, tidy_environment, variable

log = logging.getLogger("ssdistill")

CONNECT_SECONDS = 20.0
SECONDS_TO_END = 10.0
FREE_BYTES = 2**20
"""W&B writes in a process of its own, which says nothing when the disk is full."""
SUPERSEDED = "superseded"
"""Folder, inside W&B's, of offline runs that a resumed one repeats: ``wandb sync`` passes it by."""


class WandbLogger:
    """One W&B run with an id made from the record, so that a resume continues the same run.

    W&B cannot resume an offline run: each process writes a folder of its own. So a resumed run
    repeats in its folder what was logged before, and older folders are set aside.
    """

    name = "wandb"

    def __init__(
        self,
        record: RunRecord,
        folder: Path,
        settings: TrackingSettings,
        mode: Literal["online", "offline"],
        tags: Sequence[str] = (),
    ):
        arguments = run_arguments(
            settings,
            folder,
            tuple(tags),
            name=run_name(record),
            group=record.group or f"{record.name or record.stage}-{record.digest[:8]}",
            job_type=record.stage,
        )
        arguments |= {"id": wandb_id(record), "config": logged_config(record)}
        self._begin(_open(mode, arguments), prefix="")

    def _begin(self, run: Any, prefix: str) -> None:
        self._run, self._prefix = run, prefix
        self._shown = self._last_server_step()
        run.define_metric(f"{prefix}step", hidden=True)
        run.define_metric(f"{prefix}*", step_metric=f"{prefix}step")

    def log(self, step: int, metrics: Mapping[str, float], epoch: int | None) -> None:
        if step <= self._shown:
            return
        self._check_disk()
        epochs = {} if epoch is None else {"epoch": epoch}
        self._run.log(self._named({"step": step, **epochs, **metrics}))

    def catch_up(self, lines: Sequence[Mapping[str, Any]], step: int | None) -> None:
        self._repeat(lines)
        _set_aside(Path(self._run.dir).parent, self._run.id)

    def _repeat(self, lines: Sequence[Mapping[str, Any]]) -> None:
        for line in lines:
            metrics = {k: v for k, v in line.items() if k not in ("step", "epoch")}
            shown = {name: value for name, value in metrics.items() if value is not None}
            self.log(line["step"], shown, line.get("epoch"))

    def log_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        import wandb

        shown = {name: wandb.Image(image_HWC) for name, image_HWC in images.items()}
        self._run.log(self._named({"step": step, **shown}))

    def log_model(self, name: str, files: Sequence[Path], lineage: dict[str, Any]) -> None:
        import wandb

        artifact = wandb.Artifact(
            f"{_safe_name(self._run.id)}-{_safe_name(name)}", type="model", metadata=lineage
        )
        for file in files:
            # immutable: weights are not copied a second time into W&B's staging folder.
            artifact.add_file(str(file), policy="immutable", skip_cache=True)
        self._run.log_artifact(artifact, aliases=[_safe_name(name)])

    def finish(self, status: str, metrics: Mapping[str, float]) -> None:
        self._run.summary.update({**metrics, "status": status})
        self._run.finish(exit_code=0 if status == "finished" else 1)
        _check_written(Path(self._run.dir).parent)

    def _check_disk(self) -> None:
        if shutil.disk_usage(self._run.dir).free < FREE_BYTES:
            raise OSError(f"no space left on the disk for {self._run.dir}")

    def _named(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        return {f"{self._prefix}{name}": value for name, value in metrics.items()}

    def _last_server_step(self) -> int:
        """The last step that the server has of this run; -1 where there is none."""
        if not self._run.resumed:
            return -1
        step = self._run.summary.get(f"{self._prefix}step")
        return int(step) if isinstance(step, int | float) else -1


class SharedLogger(WandbLogger):
    """The part of one stage in the W&B run of a whole experiment, under the name of its row.

    Args:
        run: the shared run, which others use, too.
        record: of the stage.
        by_seed: whether the experiment has several seeds, to be told apart.
    """

    def __init__(self, run: Any, record: RunRecord, by_seed: bool):
        seed = f"s{record.seed}/" if by_seed else ""
        self._begin(run, f"{record.role or record.stage}/{seed}")

    def catch_up(self, lines: Sequence[Mapping[str, Any]], step: int | None) -> None:
        self._repeat(lines)

    def finish(self, status: str, metrics: Mapping[str, float]) -> None:
        self._run.summary.update(self._named(metrics))


class SharedReport(WandbLogger):
    """The report of an experiment in the W&B run of all of it: final numbers by row.

    They are means over seeds, under names without a seed: what a sweep reads its goal from.
    """

    def __init__(self, run: Any):
        self._run, self._prefix = run, ""

    def log(self, step: int, metrics: Mapping[str, float], epoch: int | None) -> None:
        """Do nothing: the stages have logged these metrics by seed."""

    def catch_up(self, lines: Sequence[Mapping[str, Any]], step: int | None) -> None:
        """Do nothing, for the same reason."""

    def finish(self, status: str, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics))
        self._run.summary.update(metrics)


def open_shared_run(
    mode: Literal["online", "offline"],
    config: Mapping[str, Any],
    tags: Sequence[str],
) -> Any:
    """The W&B run of a whole experiment, as sweep agents require it.

    Id, project and entity are the agent's: W&B reads them from the environment itself.
    """
    import wandb

    tidy_environment()
    environment = wandb.setup(wandb.Settings(silent=True)).settings
    if (environment.sweep_id, environment.run_id) != (
        variable("WANDB_SWEEP_ID"),
        variable("WANDB_RUN_ID"),
    ):
        # W&B looked at the environment before the agent wrote to it.
        forget_wandb()
    arguments = {
        "dir": variable("WANDB_DIR"),
        "name": variable("WANDB_NAME"),
        "group": variable("WANDB_RUN_GROUP"),
        "job_type": variable("WANDB_JOB_TYPE") or "experiment",
        "notes": variable("WANDB_NOTES"),
        "tags": all_tags(tuple(tags)),
        "config": dict(config),
    }
    return _open(mode, arguments)


def active_run() -> Any:
    """The W&B run that the caller's own code has opened; None where there is none."""
    import wandb

    return wandb.run


def _open(mode: Literal["online", "offline"], arguments: dict[str, Any]) -> Any:
    import wandb

    tidy_environment()
    quiet = wandb.Settings(
        silent=True,
        console="off",
        save_code=False,
        disable_git=True,
        x_disable_machine_info=True,
        x_disable_meta=True,
        x_disable_stats=mode == "offline",
        init_timeout=CONNECT_SECONDS,
        # Never another run that is open in this process.
        reinit="create_new",
    )
    wandb.setup(wandb.Settings(silent=True))
    resume = "allow" if mode == "online" else None
    run = wandb.init(**arguments, mode=mode, resume=resume, settings=quiet)
    folder, root = arguments["dir"], run.settings.root_dir
    if folder and Path(folder).resolve() != Path(root).resolve():
        log.warning("wandb cannot write to %s; its files are in %s", folder, root)
    return run


def run_name(record: RunRecord) -> str:
    """``<row>/<losses or method>/s<seed>``, each word once; of an evaluation also the stage."""
    method = record.columns.get("losses") or record.columns.get("method") or record.kind
    stage = record.stage if record.stage == "evaluate" else ""
    parts = [record.role or record.stage, str(method), stage, f"s{record.seed}"]
    return "/".join(dict.fromkeys(part for part in parts if part))


def wandb_id(record: RunRecord) -> str:
    """``<digest8>-<stage>-s<seed>``: the same for every resume of one run."""
    return _safe_name(f"{record.digest[:8]}-{record.stage}-s{record.seed}")


def logged_config(record: RunRecord) -> dict[str, Any]:
    """The resolved config, flat columns to group by, and below ``run`` what identifies the run."""
    identity = ("kind", "role", "digest", "seed", "profile", "fingerprint", "parents", "provenance")
    facts = {name: getattr(record, name) for name in identity}
    config = with_columns({"seed": record.seed, **record.config}, record.columns)
    return json.loads(json.dumps({**config, "run": facts}, default=str))


def with_columns(config: Mapping[str, Any], columns: Mapping[str, Any]) -> dict[str, Any]:
    """Both side by side; a section that has the name of a column is called ``<name>_settings``."""
    sections = {
        f"{key}_settings" if key in columns and isinstance(value, dict) else key: value
        for key, value in config.items()
    }
    return {**sections, **columns}


def forget_wandb() -> None:
    """End W&B's process, so that the next run starts a new one.

    It may be dead, keep the id of a run that never started, or still be uploading: nothing of
    that is waited for long, and nothing that goes wrong is of interest any more.
    """
    # Not imported here: that wandb cannot be imported may be what went wrong.
    wandb = sys.modules.get("wandb")
    if wandb is None or getattr(wandb, "run", None) is not None:
        # There is nothing to end, or it is not ours.
        return

    def end() -> None:
        with suppress(Exception, SystemExit):
            wandb.teardown()

    thread = threading.Thread(target=end, daemon=True)
    thread.start()
    thread.join(SECONDS_TO_END)


def _set_aside(current: Path, run_id: str) -> None:
    """Move older offline folders of this run where ``wandb sync`` does not look for them."""
    pattern = re.compile(rf"offline-run-\d+_\d+-{re.escape(run_id)}(-\d+)?")
    for older in sorted(current.parent.glob("offline-run-*")):
        if older.name != current.name and pattern.fullmatch(older.name):
            (current.parent / SUPERSEDED).mkdir(exist_ok=True)
            older.rename(current.parent / SUPERSEDED / older.name)


def _check_written(folder: Path) -> None:
    """Raise OSError where W&B's process says in its log that it could not write."""
    log_file = folder / "logs" / "debug-internal.log"
    content = log_file.read_bytes() if log_file.exists() else b""
    if b"failed to save record" in content:
        raise OSError(f"could not write all files to {folder}; check its disk")


def _safe_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name)
