"""Settings of logging to W&B and TensorBoard."""

from typing import Literal

from ssdistill.settings import PositiveInt, Settings


class TrackingSettings(Settings):
    """Where and how often a run is logged.

    Args:
        wandb: ``auto`` follows ``WANDB_MODE``; where that is silent, too, it is online if an API
            key exists and offline otherwise. It never asks.
        project: of W&B; null for ``WANDB_PROJECT``, or else ``ssdistill``.
        entity: of W&B; null for ``WANDB_ENTITY``, or else the account's own.
        tensorboard: also write event files (needs the ``tensorboard`` extra).
        log_every: optimizer steps between two log lines.
        gradients_every: optimizer steps between two measurements of each loss's gradient (a
            backward pass a loss); null for none.
        online_probe: while an encoder trains, fit a linear classifier to its embeddings beside
            it, and log ``probe/online/top1``, its accuracy on training views. It reads training
            labels and leaves the encoder as it is.
        agreement: while a student is distilled, log ``agree/cka``, how its embeddings of some
            training images agree with the teacher's; less than about 1 % of the time.
    """

    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    project: str | None = None
    entity: str | None = None
    tensorboard: bool = False
    log_every: PositiveInt = 10
    gradients_every: PositiveInt | None = 100
    online_probe: bool = False
    agreement: bool = True
