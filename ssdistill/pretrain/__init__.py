"""One file = one self-supervised method. A new file here is found by itself (see `registry`)."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from ssdistill.models.backbones import Encoder
from ssdistill.train.task import Task


class Method(Task):
    """A self-supervised pretraining method over two views.

    A subclass sets ``kind``, ``paper``, ``recipes`` (one view recipe per view, for natural
    images) and its keyword-only settings; the encoder is its one positional argument.

    It may set ``projector`` in its constructor: the head of linear layers, batch norms and ReLUs
    between the embedding and the space of its loss. The stage exports the encoder with it, for
    losses that read the teacher's projection.
    """

    kind: ClassVar[str]
    paper: ClassVar[str]
    recipes: ClassVar[tuple[str, ...]]

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.encoder = encoder
        self.num_views = len(self.recipes)
        self.projector: nn.Module | None = None

    def weights_at(self, step: int, num_steps: int) -> dict[str, float]:
        return {self.kind: 1.0}

    def embed(self, views: list[Tensor]) -> tuple[Tensor, ...]:
        """Embeddings (B, D) of every view, from one forward over all of them."""
        embedding_ND = self.encoder(torch.cat(views)).embedding_BD
        per_view = embedding_ND.chunk(len(views))
        self.last_embedding_BD = per_view[0].detach()
        return per_view
