"""Who does the stages of a plan: this process, one after the other, or a cluster, side by side.

What a stage does belongs to the files beside, and how it is resumed to `record` and `train`.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # nodes of a cluster import this before they have a reason to import torch
    from ssdistill.chain.process_group import Processes
    from ssdistill.chain.stages import Identity, Stage
    from ssdistill.chain.workspace import Workspace
    from ssdistill.experiment.schema import Experiment

Key = tuple[str, int]
"""Hash and seed of a stage: two stages with the same key are the same work."""


def key_of(stage: "Stage") -> Key:
    """Return hash and seed of a stage."""
    return stage.digest, stage.seed


@dataclass(frozen=True)
class Job:
    """One stage to be finished.

    Attributes:
        stage: what is to be done; its parents are further jobs, or finished.
        workspace: of its experiment.
        identity: of its experiment.
        label: its name in messages.
    """

    stage: "Stage"
    workspace: "Workspace"
    identity: "Identity"
    label: str

    @property
    def key(self) -> Key:
        """Hash and seed of the stage."""
        return key_of(self.stage)


class Executor(AbstractContextManager, Protocol):
    """What does stages; open it as a context manager, for one run or for several."""

    def processes_for(self, experiment: "Experiment") -> "Processes":
        """Return the processes that share the trainings of this one; called before anything else.

        Raises:
            UserError: the settings of the experiment are not for this executor.
        """
        ...

    def finish(self, jobs: Sequence[Job]) -> None:
        """See that every stage is finished.

        Args:
            jobs: parents first. Those of several experiments may be mixed, in one runs folder.

        Raises:
            DamagedFile: what a finished stage wrote has changed.
            UserError: a stage failed; those that do not descend from it may be finished.
            KeyboardInterrupt: after Ctrl-C; another call goes on from there.
        """
        ...
