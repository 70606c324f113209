"""Who does the stages of a plan: this process, one after the other, or a cluster, side by side."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from ssdistill.chain.stages import Identity, Stage
from ssdistill.chain.workspace import Workspace


@dataclass(frozen=True)
class Job:
    """One stage to be finished.

    Attributes:
        stage: what is to be done; its parents are further jobs, or finished.
        workspace: of its experiment.
        identity: of its experiment.
        label: its name in messages.
    """

    stage: Stage
    workspace: Workspace
    identity: Identity
    label: str

    @property
    def key(self) -> tuple[str, int]:
        """Hash and seed: two jobs with the same key are the same work."""
        return self.stage.digest, self.stage.seed


class Executor(AbstractContextManager, Protocol):
    """What does stages; open it as a context manager, for one run or for several."""

    def finish(self, jobs: Sequence[Job]) -> None:
        """See that every stage is finished.

        Args:
            jobs: parents first. Several experiments' may be mixed, in one runs folder.

        Raises:
            DamagedFile: what a finished stage wrote has changed.
            UserError: a stage failed; all that do not descend from it may be finished.
            KeyboardInterrupt: after Ctrl-C; another call goes on from there.
        """
        ...
