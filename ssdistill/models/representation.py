"""What an encoder says of a batch of images."""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Representation:
    """Outputs of one encoder for one view.

    Attributes:
        embedding_BD: the backbone's pooled features, what a probe reads.
        projection_BP: output of a self-supervised head, where the encoder kept one.
        maps: intermediate feature maps by tap name, each (B, C, H, W).
    """

    embedding_BD: Tensor
    projection_BP: Tensor | None = None
    maps: dict[str, Tensor] = field(default_factory=dict)

    def detach(self) -> "Representation":
        """The same values, cut from the graph."""
        return Representation(
            self.embedding_BD.detach(),
            None if self.projection_BP is None else self.projection_BP.detach(),
            {name: m.detach() for name, m in self.maps.items()},
        )
