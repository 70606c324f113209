"""Momentum (exponential moving average) copies of a network."""

import copy
import math
from typing import TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


def momentum_copy(module: Network) -> Network:
    """Copy a network and freeze the copy."""
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def update_momentum(online: nn.Module, target: nn.Module, momentum: float) -> None:
    """``target = momentum * target + (1 - momentum) * online``, in place.

    Floating-point buffers (batch-norm statistics) move like the parameters; counters are copied.
    lightly's function of the same name leaves buffers where they were initialized.
    """
    target_params: list[Tensor] = [*target.parameters()]
    online_params: list[Tensor] = [*online.parameters()]
    if target_params:  # a head may be nn.Identity
        torch._foreach_lerp_(target_params, online_params, 1 - momentum)
    for old, new in zip(target.buffers(), online.buffers(), strict=True):
        if old.is_floating_point():
            old.lerp_(new, 1 - momentum)
        else:
            old.copy_(new)


def cosine_momentum(base: float, step: int, num_steps: int, end: float = 1.0) -> float:
    """Momentum going from ``base`` to ``end`` by a cosine (BYOL, arXiv:2006.07733, sec. 3.2)."""
    return end - (end - base) * (math.cos(math.pi * step / num_steps) + 1) / 2
