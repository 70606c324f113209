"""Encode several views of a batch with one encoder."""

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from ssdistill.models.representation import Representation

View = TypeVar("View", bound=int | str)
"""Number or name of a view."""


def encode_views(encoder: nn.Module, views: Mapping[View, Tensor]) -> dict[View, Representation]:
    """A representation of each view, from one forward pass for all views of the same size."""
    together: dict[torch.Size, list[View]] = {}
    for name, view in views.items():
        together.setdefault(view.shape, []).append(name)
    by_view: dict[View, Representation] = {}
    for names in together.values():
        stacked = torch.cat([views[name] for name in names])
        by_view.update(zip(names, encoder(stacked).chunk(len(names)), strict=True))
    return by_view
