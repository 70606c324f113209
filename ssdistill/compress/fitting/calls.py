"""Data model of one use of a layer's weight, and the argument lists of such uses."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass
class Call:
    """One use of a layer's weight, at a sample of the places of its output.

    The output y is followed to ``scale y + shift + stream`` through per-channel
    operations: a batch norm, a layer scale, and finally the residual addition.

    Attributes:
        x_NGK: input of every sample by group of the convolution (G = 1 elsewhere).
        y_NO: output of every sample.
        scale_O, shift_O: the affine map that follows.
        own: whether the added bias is the layer's own.
        stream_NO: the residual stream added after the map; None without an addition.
        norm: name of the batch norm that reads y directly.
        uses: how many operations read y.
        events: number of observations of this call, itself included.
    """

    x_NGK: Tensor | None
    y_NO: Tensor
    scale_O: Tensor
    shift_O: Tensor
    own: bool
    stream_NO: Tensor | None = None
    norm: str | None = None
    uses: int = 0
    events: int = 1

    @property
    def end_NO(self) -> Tensor:
        """Output after the affine map and the residual addition, in float64."""
        end_NO = self.scale_O * self.y_NO.double() + self.shift_O
        return end_NO if self.stream_NO is None else end_NO + self.stream_NO

    def apply_norm(self, norm: "NormArguments") -> None:
        """Follow the output through a batch norm in eval mode."""
        scale_O = (norm.running_var.double() + norm.eps).rsqrt()
        if norm.weight is not None:
            scale_O = scale_O * norm.weight
        self.scale_O = self.scale_O * scale_O
        self.shift_O = (self.shift_O - norm.running_mean) * scale_O
        if norm.bias is not None:
            self.shift_O = self.shift_O + norm.bias


@dataclass
class Link:
    """A tensor equal to a layer's output times a scale plus a shift, both per channel.

    Attributes:
        tensor: the tensor, held so that its ``id()`` is not reused.
        call: the use of the layer that wrote the output.
        axes: which axis of the output each of its own axes is.
        channel: which of its own axes holds the channels.
        direct: whether it is the output itself.
    """

    tensor: Tensor
    call: Call
    axes: list[int]
    channel: int
    direct: bool = True

    def permuted(self, result: Tensor, order: tuple[int, ...]) -> "Link":
        order = [i % len(self.axes) for i in order]
        axes = [self.axes[i] for i in order]
        return Link(result, self.call, axes, order.index(self.channel), False)

    def as_output(self, z: Tensor) -> Tensor:
        """``z``, shaped as the linked tensor, with the axes of the layer's output."""
        return z.permute([self.axes.index(axis) for axis in range(len(self.axes))])

    def factor(self, args: tuple) -> Tensor | None:
        """Per-channel factor of a product with the tensor; None if it is not per channel."""
        others = [a for a in args if a is not self.tensor]
        if len(others) != 1 or not isinstance(others[0], Tensor):
            return None
        factor, from_end = others[0], self.channel - self.tensor.ndim
        width = self.tensor.shape[self.channel]
        by_channel = factor.ndim >= -from_end and factor.shape[from_end] == width == factor.numel()
        return factor.flatten() if by_channel else None


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
        seen_BCPk = x_BCHW.flatten(2)[:, :, index_Pk]
        return seen_BCPk.transpose(1, 2).reshape(batch * len(places_P), self.groups, -1)

    def _sides(self) -> tuple[int, int, int, int]:
        """Padding left, right, above and below; ``same`` puts the odd one right and below."""
        if self.padding == "valid":
            return 0, 0, 0, 0
        if self.padding == "same":
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
    """The arguments of ``torch.nn.functional.batch_norm``."""

    input: Tensor
    running_mean: Tensor | None
    running_var: Tensor | None
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


def layers_of(net: nn.Module) -> dict[str, nn.Module]:
    """Convolutions and linear layers by name."""
    return {n: m for n, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)
