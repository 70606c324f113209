"""State shared by the loggers of one experiment's stages."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from ssdistill.errors import one_line
from ssdistill.record.run import RunRecord
from ssdistill.record.wandb_environment import in_sweep, variable
from ssdistill.record.wandb_logger import (
    SharedLogger,
    SharedReport,
    WandbLogger,
    active_run,
    forget_wandb,
    logged_config,
    open_shared_run,
)

log = logging.getLogger("ssdistill")


@dataclass
class Session:
    """One experiment being run.

    Attributes:
        config: of the whole experiment, for a W&B run that holds all of it.
        tags: of that run.
        num_seeds: more than one are told apart by name.
        once: warnings are said once, however many stages meet their cause.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    tags: Sequence[str] = ()
    num_seeds: int = 1
    once: bool = False
    _warned: set[str] = field(default_factory=set)
    _run: Any = None
    _key: tuple[str | None, str | None] = (None, None)

    def warn(self, text: str) -> None:
        """Print a warning about a harmless failure, once."""
        if not (self.once and text in self._warned):
            log.warning(text)
        self._warned.add(text)

    def shared_logger(
        self,
        record: RunRecord,
        mode: Literal["online", "offline"],
        tags: Sequence[str],
    ) -> WandbLogger | None:
        """The stage's part in the W&B run of the whole experiment, or None where there is none.

        There is one inside a sweep, whose agent has opened it, and where the caller of this
        library has opened one.
        """
        run = active_run() or self._run_of_sweep(record, mode, tags)
        if run is None or record.stage == "report":
            return run and SharedReport(run)
        return SharedLogger(run, record, self.num_seeds > 1)

    def _run_of_sweep(
        self,
        record: RunRecord,
        mode: Literal["online", "offline"],
        tags: Sequence[str],
    ) -> Any:
        if not in_sweep():
            return None
        key = (variable("WANDB_SWEEP_ID"), variable("WANDB_RUN_ID"))
        if self._run is None or self._key != key:
            self.close(failed=False)
            config = self.config or logged_config(record)
            self._run, self._key = open_shared_run(mode, config, self.tags or tags), key
        return self._run

    def abandon(self) -> None:
        """Stop logging to W&B after a failure; the next stage tries again."""
        self._run = None
        forget_wandb()

    def close(self, failed: bool) -> None:
        """Finish the shared run, if there is one of ours."""
        if self._run is not None:
            run, self._run = self._run, None
            run.finish(exit_code=1 if failed else 0)


_current = Session()


def current_session() -> Session:
    """The experiment that runs in this process, or one without name outside of any."""
    return _current


@contextmanager
def session(config: Mapping[str, Any], tags: Sequence[str], num_seeds: int) -> Iterator[Session]:
    """An experiment, from its first stage to its report."""
    global _current
    before, _current = _current, Session(config, tags, num_seeds, once=True)
    failed = True
    try:
        yield _current
        failed = False
    finally:
        ended, _current = _current, before
        try:
            ended.close(failed)
        except Exception as error:
            ended.warn(f"wandb did not finish ({one_line(error)}); the local logs are complete")
            forget_wandb()
