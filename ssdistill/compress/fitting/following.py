"""Follow the output of a layer through per-channel operations, up to the residual addition."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ssdistill.compress.fitting.arguments import NormArguments, rows_at
from ssdistill.compress.fitting.calls import Call

ADDITIONS = {"add", "add_", "__add__", "__radd__", "__iadd__"}
PRODUCTS = {"mul", "mul_", "__mul__", "__rmul__", "__imul__", "multiply"}
UNCHANGED = {"dropout", "contiguous", "to", "float"}
"""Operations that return their argument's values, in eval mode."""


@dataclass(frozen=True)
class Position:
    """How a tensor is made of a layer's output: times a scale plus a shift, both per channel.

    The scale and the shift are the call's.

    Attributes:
        call: the use of the layer that wrote the output.
        axes: which axis of the output each of the tensor's axes is.
        channel: which of the tensor's axes holds the channels.
        direct: whether the tensor is the output itself.
    """

    call: Call
    axes: list[int]
    channel: int
    direct: bool = True

    def permuted(self, order: tuple[int, ...]) -> "Position":
        """Position of the tensor with its axes in another order; no longer the output itself."""
        sources = [i % len(self.axes) for i in order]
        return Position(
            self.call, [self.axes[i] for i in sources], sources.index(self.channel), direct=False
        )

    def as_output(self, z: Tensor) -> Tensor:
        """``z``, shaped as the tensor, with the axes of the layer's output."""
        return z.permute([self.axes.index(axis) for axis in range(len(self.axes))])


class OutputFollower:
    """Which tensors of a running forward pass follow from the output of a layer.

    Every output y is followed as one tensor at a time::

        conv2d / linear      y                          start
          batch_norm         scale * y + shift          the result is followed instead
          mul by channel     scale * y + shift          the result is followed instead
          permute            axes moved                 the result is followed instead
          dropout, to, …     unchanged                  the result is followed instead
          add                scale * y + shift + stream the stream is recorded: the end
          anything else                                 the end

    Tensors are keys of a dictionary, which compares them by identity and keeps them alive.

    Args:
        norms: names of the batch norms, by their running means.
        places: ``places(z, channel)`` gives the positions to sample of a feature map ``z``; None
            for all.
    """

    def __init__(self, norms: Mapping[Tensor, str], places: Callable[[Tensor, int], Tensor | None]):
        self._norms, self._places = norms, places
        self._positions: dict[Tensor, Position] = {}

    def start(self, y: Tensor, call: Call, channel: int) -> None:
        """Follow the output ``y`` of a call, with its channels along axis ``channel``."""
        self._positions[y] = Position(call, list(range(y.ndim)), channel)

    def among(self, tensors: list[Tensor]) -> dict[Tensor, Position]:
        """Those of ``tensors`` that are followed."""
        return {z: self._positions[z] for z in tensors if z in self._positions}

    def record_stream(self, tensor: Tensor, position: Position, args: tuple) -> None:
        """Record what an addition will add to a followed tensor, the residual stream.

        Call it before the operation: an addition in place overwrites one of its operands.
        """
        others = [a for a in args if isinstance(a, Tensor) and a is not tensor]
        if len(others) == 1 and others[0].shape == tensor.shape:
            stream, channel = position.as_output(others[0]), position.axes[position.channel]
            position.call.stream_NO = rows_at(stream, channel, self._places(stream, channel))
            position.call.events += 1

    def advance(
        self,
        tensor: Tensor,
        position: Position,
        operation: str,
        args: tuple,
        kwargs: dict,
        result: Any,
    ) -> None:
        """Follow the result of an operation instead of the tensor that it has read, or nothing."""
        del self._positions[tensor]
        call, order = position.call, tuple(range(tensor.ndim))
        if operation == "batch_norm" and position.channel == 1 and args[1] is not None:
            norm = NormArguments(*args, **kwargs)
            call.norm = self._norms.get(norm.running_mean) if position.direct else call.norm
            call.apply_norm(norm)
        elif (
            operation in PRODUCTS
            and (factor_O := _channel_factor(tensor, position, args)) is not None
        ):
            call.scale_O, call.shift_O = call.scale_O * factor_O, call.shift_O * factor_O
        elif operation == "permute":
            order = kwargs.get("dims", args[1:])
            order = order if isinstance(order[0], int) else tuple(order[0])
        elif operation not in UNCHANGED:
            # Stop following: a later addend could depend on the output itself.
            return
        call.events += 1
        self._positions[result] = position.permuted(order)


def _channel_factor(tensor: Tensor, position: Position, args: tuple) -> Tensor | None:
    """Per-channel factor of a product with a followed tensor; None if it is not per channel."""
    others = [a for a in args if a is not tensor]
    if len(others) != 1 or not isinstance(others[0], Tensor):
        return None
    factor, from_end = others[0], position.channel - tensor.ndim
    width = tensor.shape[position.channel]
    by_channel = factor.ndim >= -from_end and factor.shape[from_end] == width == factor.numel()
    return factor.flatten() if by_channel else None
