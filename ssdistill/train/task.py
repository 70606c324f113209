"""What the training loop trains: a pretraining method or a distiller."""

from torch import Tensor, nn

from ssdistill.data.batch import Batch
from ssdistill.models.backbones import Encoder


class Task(nn.Module):
    """A network with losses over views of unlabeled images.

    A subclass sets in its constructor:
        encoder: the encoder being trained, which the stage exports.
        num_views: views of each image a step needs.
        weights: weight of each loss in the total, by name.

    and, at every forward, ``last_embedding_BD``: the encoder's embedding of the first view,
    detached, for the collapse gauge.
    """

    encoder: Encoder
    num_views: int
    weights: dict[str, float]
    last_embedding_BD: Tensor

    def forward(self, views: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        """Unweighted losses by name, for ``num_views`` tensors (B, 3, H, W) in [0, 1]."""
        raise TypeError(f"{type(self).__name__} defines no forward")

    def after_step(self, step: int, num_steps: int) -> None:
        """Called after every optimizer step; momentum networks move here."""
