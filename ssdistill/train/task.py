"""A task for the training loop: a pretraining method, a distiller or a supervised probe."""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from torch import Tensor, nn

from ssdistill.data.batch import Batch
from ssdistill.models.backbones import Encoder


class Task(nn.Module):
    """A network with losses over views of unlabeled images.

    A subclass sets in its constructor:
        encoder: the encoder being trained, which the stage exports.
        num_views: views of each image a step needs, at least.
        extra_views: names of further views it needs, of :data:`ssdistill.data.extra.EXTRA`.
        neighbors_NK: images like each training image, where an extra view shows one.

        teachers: networks it learns from that are no submodules of it, by name.
        rates: multipliers of the learning rate by parameter name; 1 for those not named.

    and, at every forward, ``last_embeddings``: what the encoder has just made of the views it
    encoded, (B, D) each and detached, for the metrics. A task that trains with labels leaves it
    empty: no collapse is to be feared.
    """

    encoder: Encoder
    num_views: int
    extra_views: tuple[str, ...] = ()
    neighbors_NK: np.ndarray | None = None
    teachers: Mapping[str, Encoder] = MappingProxyType({})
    rates: Mapping[str, float] = MappingProxyType({})
    last_embeddings: list[Tensor]

    def forward(self, views: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return unweighted losses by name, for ``num_views`` tensors (B, 3, H, W) in [0, 1]."""
        raise TypeError(f"{type(self).__name__} must define forward")

    def weights_at(self, step: int, num_steps: int) -> dict[str, float]:
        """Return the weight of each loss in the total at one step, by name."""
        raise TypeError(f"{type(self).__name__} must define weights")

    @property
    def comparing(self) -> tuple[str, ...]:
        """Names of what compares the images of a batch, or remembers them for the next one.

        The loss of a batch is then not the mean of those of its parts.
        """
        return ()

    @property
    def exported(self) -> tuple[Encoder, nn.Module | None]:
        """The parts that outlive training: the encoder, and the projector it was trained with."""
        return self.encoder, None

    def after_step(self, step: int, num_steps: int) -> None:
        """Update momentum networks; called after every optimizer step."""
