"""Log to the record and to the loggers, W&B and TensorBoard, by one interface."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from ssdistill.errors import one_line
from ssdistill.record.run import Run, numbers, read_metrics
from ssdistill.record.session import current_session
from ssdistill.record.tensorboard import TensorboardLogger
from ssdistill.record.tracking_settings import TrackingSettings
from ssdistill.record.wandb_environment import has_key, wandb_mode
from ssdistill.record.wandb_logger import WandbLogger, forget_wandb, logged_config, wandb_id

__all__ = [
    "Logger",
    "Tracker",
    "TrackingSettings",
    "WandbLogger",
    "has_key",
    "logged_config",
    "wandb_id",
    "wandb_mode",
]


class Logger(Protocol):
    """Interface of a logger; every call may fail without harm to the run."""

    name: str

    def catch_up(self, lines: Sequence[Mapping[str, Any]], step: int | None) -> None:
        """Show what an earlier process logged; called for a resumed run only.

        Args:
            lines: of metrics.jsonl, before ``step``.
            step: the next one to be logged; None if no more will be.
        """

    def log(self, step: int, metrics: Mapping[str, float], epoch: int | None) -> None: ...
    def log_images(self, step: int, images: Mapping[str, np.ndarray]) -> None: ...
    def log_model(self, name: str, files: Sequence[Path], lineage: dict[str, Any]) -> None: ...
    def finish(self, status: str, metrics: Mapping[str, float]) -> None: ...


class Tracker:
    """Writes to the record first, then to the loggers.

    A logger that fails is reported once, in one line, and not called again; the record and the
    training go on. After a resume, each logger ends up with every step once.

    Raises:
        UserError: ``wandb: online`` without a key, or ``tensorboard: true`` without the package.
    """

    def __init__(self, run: Run, settings: TrackingSettings, tags: Sequence[str] = ()):
        self.run, self.settings = run, settings
        # Not yet: the training first rewinds the record to its checkpoint.
        self._must_catch_up = run.record.resumed > 0 or run.last_step is not None
        self.loggers: list[Logger] = []
        mode = wandb_mode(settings)
        if settings.tensorboard:
            self.loggers.append(TensorboardLogger(run.folder, logged_config(run.record)))
        if mode != "disabled":
            self._attempt("wandb", lambda: self.loggers.append(self._wandb(mode, tags)))

    def due(self, step: int) -> bool:
        """Whether ``step`` is one of those to log; ask before moving numbers off the device."""
        return step % self.settings.log_every == 0

    def gradients_due(self, step: int) -> bool:
        """Whether the losses' gradients are to be measured at ``step``, one of those to log."""
        every = self.settings.gradients_every
        return every is not None and step % every == 0 and self.due(step)

    def log(self, step: int, metrics: Mapping[str, Any], epoch: int | None = None) -> None:
        """One line in the record and one call per logger."""
        self._catch_up(step)
        plain = numbers(metrics)
        self.run.log(step, plain, epoch)
        finite = {name: value for name, value in plain.items() if value is not None}
        self._each(lambda logger: logger.log(step, finite, epoch))

    def log_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Show images, (H, W, 3) uint8 by name; loggers only."""
        self._catch_up(step)
        self._each(lambda logger: logger.log_images(step, images))

    def log_model(
        self, name: str, path: Path, sha256: str, parent_sha256: str | None = None, **facts: Any
    ) -> None:
        """Record an encoder and announce it with its lineage.

        Args:
            name: its role: ``teacher``, ``student``, ``pruned``, …
            path: a file, or a folder whose files belong together; inside the run's folder.
            sha256: of the weights; parent_sha256: of what it was made from.
            **facts: anything else to keep with it.
        """
        path = Path(path)
        self.run.add_artifact(name, path, sha256, parent_sha256=parent_sha256, **facts)
        lineage = {"sha256": sha256, "parent_sha256": parent_sha256, **facts}
        lineage |= {"digest": self.run.record.digest, "seed": self.run.record.seed}
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        self._each(lambda logger: logger.log_model(name, files, lineage))

    def finish(self, metrics: Mapping[str, Any] | None = None) -> None:
        """Close the record as finished, then the loggers."""
        self.run.finish(metrics)
        self.close()

    def close(self) -> None:
        """Close the loggers with the status of the record; nothing happens the second time."""
        self._catch_up(None)
        record = self.run.record
        finite = {name: value for name, value in record.metrics.items() if value is not None}
        self._each(lambda logger: logger.finish(record.status, finite))
        self.loggers = []

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        self.run.__exit__(kind, error, trace)
        self.close()

    def _catch_up(self, step: int | None) -> None:
        """Replay what earlier processes logged, once, before the first call of this process."""
        if self._must_catch_up and self.loggers:
            lines = read_metrics(self.run.folder)
            lines = [line for line in lines if step is None or line["step"] < step]
            self._each(lambda logger: logger.catch_up(lines, step))
        self._must_catch_up = False

    def _wandb(self, mode: Literal["online", "offline"], tags: Sequence[str]) -> Logger:
        """The W&B logger; offline where the server is out of reach, as on many a compute node."""
        if mode == "online":
            try:
                return self._open_wandb(mode, tags)
            except Exception as error:
                forget_wandb()
                reason = one_line(error)
                current_session().warn(f"wandb is not reachable ({reason}); logging offline")
        return self._open_wandb("offline", tags)

    def _open_wandb(self, mode: Literal["online", "offline"], tags: Sequence[str]) -> Logger:
        record = self.run.record
        shared = current_session().shared_logger(record, mode, tags)
        return shared or WandbLogger(record, self.run.folder, self.settings, mode, tags)

    def _each(self, call: Callable[[Logger], None]) -> None:
        self.loggers = [m for m in self.loggers if self._attempt(m.name, lambda m=m: call(m))]

    def _attempt(self, name: str, call: Callable[[], None]) -> bool:
        try:
            call()
        # Whatever goes wrong inside a logger, hours of training must not go with it.
        except Exception as error:
            reason = one_line(error)
            current_session().warn(f"{name} logging failed ({reason}); continuing with local logs")
            if name == WandbLogger.name:
                current_session().abandon()
            return False
        return True
