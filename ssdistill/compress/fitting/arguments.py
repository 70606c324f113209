"""Arguments of the operations in which a layer uses its weight, and the samples they read."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


class ConvArguments:
    """The arguments of ``torch.conv2d``."""

    def __init__(self, input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
        self.input, self.weight, self.bias, self.groups = input, weight, bias, groups
        self.stride, self.dilation, self.channel = _pair(stride), _pair(dilation), 1
        self.padding = padding if isinstance(padding, str) else _pair(padding)

    def samples(self, y: Tensor, places_P: Tensor | None) -> Tensor:
        """Input patches of the convolution at given positions of its output (B, O, H, W).

        Returns:
            (B * P, groups, inputs of a group * kernel), in the order of the flattened weight.
        """
        (batch, _, rows, columns), device = y.shape, y.device
        x_BCHW = functional.pad(self.input, self._sides())
        width = x_BCHW.shape[3]
        if places_P is None:
            places_P = torch.arange(rows * columns, device=device)
        top_P, left_P = places_P // columns, places_P % columns
        corner_P = top_P * self.stride[0] * width + left_P * self.stride[1]
        down_k, right_k = (
            torch.arange(k, device=device) * d
            for k, d in zip(self.weight.shape[2:], self.dilation, strict=True)
        )
        index_Pk = corner_P[:, None] + (down_k[:, None] * width + right_k).flatten()
        patches_BCPk = x_BCHW.flatten(2)[:, :, index_Pk]
        return patches_BCPk.transpose(1, 2).reshape(batch * len(places_P), self.groups, -1)

    def _sides(self) -> tuple[int, int, int, int]:
        """Padding left, right, above and below; ``same`` puts the odd one right and below."""
        if self.padding == "valid":
            return 0, 0, 0, 0
        if isinstance(self.padding, str):  # same
            high, wide = (
                d * (k - 1) for k, d in zip(self.weight.shape[2:], self.dilation, strict=True)
            )
            return wide // 2, wide - wide // 2, high // 2, high - high // 2
        return self.padding[1], self.padding[1], self.padding[0], self.padding[0]


class LinearArguments:
    """The arguments of ``torch.nn.functional.linear``."""

    def __init__(self, input, weight, bias=None):
        self.input, self.weight, self.bias, self.channel = input, weight, bias, input.ndim - 1

    def samples(self, y: Tensor, places_P: Tensor | None) -> Tensor:
        """Input vectors (B * P, 1, K) at the given places."""
        return rows_at(self.input, self.channel, places_P)[:, None]


@dataclass
class NormArguments:
    """The arguments of ``torch.nn.functional.batch_norm``, with running statistics."""

    input: Tensor
    running_mean: Tensor
    running_var: Tensor
    weight: Tensor | None = None
    bias: Tensor | None = None
    training: bool = False
    momentum: float | None = None
    eps: float = 1e-5


def rows_at(z: Tensor, channel: int, places_P: Tensor | None) -> Tensor:
    """A copy of the vectors of ``z`` along axis ``channel`` at the places, (B * P, C)."""
    z_BLC = z.movedim(channel, -1)
    z_BLC = z_BLC.reshape(len(z), -1, z_BLC.shape[-1])
    return (z_BLC if places_P is None else z_BLC[:, places_P]).flatten(0, 1).clone()


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)
