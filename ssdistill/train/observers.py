"""Observers of a training run, which contribute metrics of their own."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from ssdistill.data.batch import Batch
from ssdistill.train.task import Task


class Observer:
    """Called after every optimizer step, once momentum networks are updated.

    It leaves the training as it is: no weight or buffer of the task changes, no module's mode,
    and nothing is drawn from the global generators. Its own state is kept in the checkpoint
    under ``name``; a checkpoint that knows nothing of it leaves it as it was constructed.
    """

    name: ClassVar[str]
    stop: BaseException | None = None
    """Set to end the training: it is raised after this step, once a checkpoint is written."""

    def after_step(self, step: int, batch: Batch, task: Task) -> Mapping[str, Tensor | float]:
        """Return the metrics to log if this step is logged.

        Called at every step: what is returned should stay on the device.
        """
        return {}

    def after_training(self, task: Task) -> Mapping[str, float]:
        """Return final metrics; only here may an observer change the task's weights."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain values to resume from."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Undo :meth:`state_dict`."""
