"""Interface of a network as measuring, compression and export use it."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ssdistill.models.inputs import call_checked
from ssdistill.models.representation import Representation


class Model(nn.Module):
    """A network that turns a batch of inputs into embeddings.

    An :class:`~ssdistill.models.backbones.Encoder` takes images;
    :class:`~ssdistill.models.wrapped.Wrapped` makes a model of any other module.

    Attributes:
        net: the network itself, which is what gets smaller.
        embed_dim: width of the embedding.
        channels: for every layer that has lost output channels, by its name in ``net``, which
            channels of the uncompressed network it still has, ascending.
        removed: names in ``net`` of the removed blocks, in the order of the network.
        coded: how weights are to be stored, by state dict key of ``net``, where that is shorter
            than their numbers; see :mod:`ssdistill.artifacts.coding.codes`. A weight that has
            changed since is stored as it is.
        checks_inputs: whether every batch is looked at before it is encoded, see
            :func:`ssdistill.models.inputs.call_checked`; for encoders that were loaded.
        division: calls it in parts for the time being, see :mod:`ssdistill.train.microbatch`.
    """

    net: nn.Module
    embed_dim: int
    checks_inputs: bool = False
    division: Callable[..., Any] | None = None

    def __init__(self) -> None:
        super().__init__()
        self.channels: dict[str, list[int]] = {}
        self.removed: tuple[str, ...] = ()
        self.coded: dict[str, Any] = {}

    def __call__(self, x: Tensor) -> Representation:
        call = super().__call__
        if self.checks_inputs:
            call = partial(call_checked, self, call)
        return call(x) if self.division is None else self.division(self, call, x)

    @property
    def name(self) -> str:
        """Name used in messages."""
        raise NotImplementedError(f"{type(self).__name__}.name")

    @property
    def device(self) -> torch.device:
        """Device of its parameters; the CPU if it has none."""
        first = next(self.net.parameters(), None)
        return torch.device("cpu") if first is None else first.device

    def example(self, count: int) -> Tensor:
        """``count`` inputs on its device, the same at every call: to trace, check and time it."""
        raise NotImplementedError(f"{type(self).__name__}.example")

    def fresh_net(self) -> nn.Module:
        """Uncompressed network with arbitrary weights."""
        raise NotImplementedError(f"{type(self).__name__}.fresh_net")

    @property
    def projection_dim(self) -> int | None:
        """Width of the projection; None without a projector."""
        return None

    def stage_norms(self) -> dict[str, tuple[Tensor, Tensor]]:
        """(mean_C, std_C) of the batch norm before the ReLU that closes each network stage."""
        return {}

    @property
    def tap_names(self) -> list[str]:
        """Names of the feature maps it can return; empty unless it is an encoder."""
        return []

    def map_shapes(self) -> dict[str, tuple[int, int, int]]:
        """(C, H, W) of every tapped feature map."""
        return {}

    def set_taps(self, taps: tuple[str, ...]) -> None:
        """Choose which feature maps are returned with the embedding."""
        raise NotImplementedError(f"{type(self).__name__}.set_taps")

    def forward(self, x: Tensor) -> Representation:
        raise NotImplementedError(f"{type(self).__name__}.forward")
