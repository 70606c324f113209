"""Encode several views of a batch with one encoder."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ssdistill.models.backbones import Encoder
from ssdistill.models.representation import Representation


def encode_views(
    encoder: Encoder, views: Mapping[int | str, Tensor]
) -> dict[int | str, Representation]:
    """A representation of each view, from one forward pass for all views of the same size."""
    together: dict[torch.Size, list[int | str]] = {}
    for name, view in views.items():
        together.setdefault(view.shape, []).append(name)
    by_view: dict[int | str, Representation] = {}
    for names in together.values():
        stacked = torch.cat([views[name] for name in names])
        by_view.update(zip(names, _split(encoder(stacked), len(names)), strict=True))
    return by_view


def _split(stacked: Representation, count: int) -> list[Representation]:
    """Split a representation of stacked views into ``count`` equal parts along the batch."""
    embedding = stacked.embedding_BD.chunk(count)
    projection = [None] * count
    if stacked.projection_BP is not None:
        projection = stacked.projection_BP.chunk(count)
    maps = {name: m.chunk(count) for name, m in stacked.maps.items()}
    return [
        Representation(embedding[i], projection[i], {name: m[i] for name, m in maps.items()})
        for i in range(count)
    ]
