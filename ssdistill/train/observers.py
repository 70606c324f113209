"""What may look on while something trains, and has numbers of its own to say."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from ssdistill.data.batch import Batch
from ssdistill.train.task import Task


class Observer:
    """Told of every optimizer step, once momentum networks have moved too.

    It leaves the training as it is: no weight or buffer of the task changes, no module's mode,
    and nothing is drawn from the global generators. Its own state is kept in the checkpoint
    under ``name``; a checkpoint that knows nothing of it leaves it as it was constructed.
    """

    name: ClassVar[str]

    def after_step(self, step: int, batch: Batch, task: Task) -> Mapping[str, Tensor | float]:
        """What the record shall hold should this step be logged.

        Called at every step: what is returned should stay on the device.
        """
        return {}

    def after_training(self, task: Task) -> Mapping[str, float]:
        """Final metrics; here, and only here, an observer may change the task's weights."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values to continue from."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Undo :meth:`state_dict`."""
