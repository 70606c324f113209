"""One file per self-supervised method; a new file is registered automatically (see `registry`).

The loop belongs to `train`, losses that distillation has too to `losses`.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from ssdistill.models.backbones import Encoder
from ssdistill.models.encode import encode_views
from ssdistill.train.task import Task


class Method(Task):
    """A self-supervised pretraining method over views of unlabeled images.

    A subclass sets ``kind``, ``paper``, ``recipes`` and its keyword-only settings; the encoder is
    its one positional argument.

    It may set ``projector`` in its constructor: the head of linear layers, batch norms and ReLUs
    between the embedding and the space of its loss. The stage exports the encoder with it, for
    losses that read the teacher's projection.

    Attributes:
        recipes: one view recipe per view it needs, for natural images.
        multicrop: whether further views may follow those, smaller ones among them.
        together: whether views of one size share a forward pass of the trained networks, and so
            the statistics of their batch norms, as the method's authors have it.
        accumulates: whether the loss of a batch is the mean of those of its parts, taken one
            after the other, batch norm aside: no image is compared with another, and none is
            remembered. ``accumulate`` requires it.
    """

    kind: ClassVar[str]
    paper: ClassVar[str]
    recipes: ClassVar[tuple[str, ...]]
    multicrop: ClassVar[bool] = False
    together: ClassVar[bool] = False
    accumulates: ClassVar[bool] = False

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.encoder = encoder
        self.num_views = len(self.recipes)
        self.projector: Any = None  # a module where the method has one

    @property
    def comparing(self) -> tuple[str, ...]:
        return () if self.accumulates else (self.kind,)

    @property
    def exported(self) -> tuple[Encoder, nn.Module | None]:
        return self.encoder, self.projector

    @classmethod
    def fewest_views(cls, settings: Any) -> int:
        """Return how many views it needs with these settings of its kind."""
        return len(cls.recipes)

    def weights_at(self, step: int, num_steps: int) -> dict[str, float]:
        return {self.kind: 1.0}

    def embed(self, views: Sequence[Tensor]) -> list[Tensor]:
        """Return the trained encoder's embedding (B, D) of every view; metrics read them too."""
        embeddings = self.embeddings(self.encoder, views)
        self.last_embeddings = [z_BD.detach() for z_BD in embeddings]
        return embeddings

    def embeddings(self, encoder: nn.Module, views: Sequence[Tensor]) -> list[Tensor]:
        """Return the embedding (B, D) of every view by ``encoder``, such as a momentum network."""
        if self.together:
            output_by_view = encode_views(encoder, dict(enumerate(views)))
            return [output_by_view[number].embedding_BD for number in range(len(views))]
        return [encoder(view_BCHW).embedding_BD for view_BCHW in views]
