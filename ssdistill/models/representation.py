"""Outputs of an encoder for a batch of images."""

from collections.abc import Iterable, Sequence
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

    def float(self) -> "Representation":
        """Same values in float32."""
        return Representation(
            self.embedding_BD.float(),
            None if self.projection_BP is None else self.projection_BP.float(),
            {name: m.float() for name, m in self.maps.items()},
        )

    def detach(self) -> "Representation":
        """Same values, detached from the autograd graph."""
        return Representation(
            self.embedding_BD.detach(),
            None if self.projection_BP is None else self.projection_BP.detach(),
            {name: m.detach() for name, m in self.maps.items()},
        )

    def chunk(self, count: int) -> "list[Representation]":
        """The same rows in ``count`` equal parts."""
        embedding = self.embedding_BD.chunk(count)
        projection: Sequence[Tensor | None] = [None] * count
        if self.projection_BP is not None:
            projection = self.projection_BP.chunk(count)
        maps = {name: map_BCHW.chunk(count) for name, map_BCHW in self.maps.items()}
        return [
            Representation(embedding[i], projection[i], {name: m[i] for name, m in maps.items()})
            for i in range(count)
        ]


class Outputs(list[Representation]):
    """One network's representations, one per pair of views, in the order of the pairs.

    Attributes:
        extra: representations of views made for one loss, by name (``rotated_90``, …).
        momentum: the student's moving average's representations of the student's views, in the
            same order; empty unless a loss reads them.
        masked: the student's representations of its views with masks, in the same order; empty
            unless a loss masks them.
    """

    def __init__(
        self,
        pairs: Iterable[Representation] = (),
        extra: dict[str, Representation] | None = None,
        momentum: Iterable[Representation] = (),
        masked: Iterable[Representation] = (),
    ):
        super().__init__(pairs)
        self.extra = extra or {}
        self.momentum = list(momentum)
        self.masked = list(masked)

    @property
    def distinct(self) -> list[int]:
        """Positions of the first occurrence of each representation.

        A teacher's view may be paired with several of the student, and joins a queue once.
        """
        first = {id(representation): v for v, representation in reversed(list(enumerate(self)))}
        return sorted(first.values())
