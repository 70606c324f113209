"""Batch norm by the statistics of the whole batch where several processes have a part each.

By hand: torch's SyncBatchNorm refuses CPUs and is another class, so that timm's norms with an
activation would lose it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from ssdistill.distributed import world_size


@contextmanager
def synchronized(task: nn.Module) -> Iterator[None]:
    """Make the batch norms of ``task`` that train use the images of all processes.

    Inside the block, every batch norm in training mode, whatever its class, computes mean and
    variance over the batches of all processes, passes gradients through them, and updates its
    running statistics by them, as one process does with the whole batch. Those in eval mode and
    other modules are left alone, and so are classes, names and states. Processes may have
    different numbers of rows; all of them must call the same batch norms in the same order, in
    the backward pass too, which belongs into the block. With one process nothing changes.
    """
    norms = [m for m in task.modules() if isinstance(m, _BatchNorm)]
    if world_size() == 1:
        norms = []
    for norm in norms:
        # A partial, not a closure: a deep copy of the network calls its own batch norms.
        vars(norm)["forward"] = partial(_forward, norm)
    try:
        yield
    finally:
        for norm in norms:
            del vars(norm)["forward"]


def _forward(norm: _BatchNorm, x: Tensor) -> Tensor:
    """What the class of ``norm`` does, such as an activation after it, with other statistics."""
    if not norm.training or world_size() == 1:
        return type(norm).forward(norm, x)
    with _WholeBatch():
        return type(norm).forward(norm, x)


class _WholeBatch(TorchFunctionMode):
    """Replaces ``torch.nn.functional.batch_norm`` by :func:`whole_batch_norm` in training."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.batch_norm and _trains(*args, **kwargs):
            return whole_batch_norm(*args, **kwargs)
        return func(*args, **kwargs)


def _trains(
    input: Tensor,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    *rest: Any,
    **named: Any,
) -> bool:
    return training


def whole_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """``torch.nn.functional.batch_norm`` in training, by the rows of all processes.

    In float32 or better. The gradient is that of the sum of all processes' losses, as for
    :func:`ssdistill.distributed.gather_with_gradient`.

    Args:
        input: (B, C, …) of this process; B may differ between processes.
        running_mean: (C,), moved towards the mean of all rows.
        running_var: (C,), moved towards their unbiased variance.
    """
    with torch.no_grad():
        x = _wide(input)
        own = x.new_full((1,), x.numel() // max(1, x.shape[1]))
        sums = torch.cat([_sum(x), own])
        dist.all_reduce(sums)
        count, mean_C = sums[-1], sums[:-1] / sums[-1]
        # Not from the mean of squares, which rounding spoils where the mean is large.
        squares_C = _sum((x - _broadcast(mean_C, x)).square())
        dist.all_reduce(squares_C)
        if running_mean is not None:
            running_mean.lerp_(mean_C.to(running_mean.dtype), momentum)
        if running_var is not None:
            running_var.lerp_((squares_C / (count - 1)).to(running_var.dtype), momentum)
        scale_C = (squares_C / count + eps).rsqrt()
    return _Normalize.apply(input, weight, bias, mean_C, scale_C, count)


class _Normalize(torch.autograd.Function):
    """(x - mean) scale weight + bias, mean and scale functions of the x of all processes."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight_C: Tensor | None,
        bias_C: Tensor | None,
        mean_C: Tensor,
        scale_C: Tensor,
        count: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(x, weight_C, mean_C, scale_C, count)
        y = _standardized(x, mean_C, scale_C)
        if weight_C is not None:
            y = y * _broadcast(weight_C, y)
        if bias_C is not None:
            y = y + _broadcast(bias_C, y)
        return y.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_C, mean_C, scale_C, count = ctx.saved_tensors
        grad, y = _wide(grad), _standardized(x, mean_C, scale_C)
        bias_grad_C, weight_grad_C = _sum(grad), _sum(grad * y)
        # Every row moves the statistics, and through them the outputs of all rows.
        sums = torch.stack([bias_grad_C, weight_grad_C])
        dist.all_reduce(sums)
        shift_C, slope_C = sums / count
        factor_C = scale_C if weight_C is None else scale_C * weight_C
        x_grad = grad - _broadcast(shift_C, y) - y * _broadcast(slope_C, y)
        x_grad = (x_grad * _broadcast(factor_C, y)).to(x.dtype)
        found = (x_grad, weight_grad_C, bias_grad_C, None, None, None)
        return tuple(
            g if needed else None for g, needed in zip(found, ctx.needs_input_grad, strict=True)
        )


def _standardized(x: Tensor, mean_C: Tensor, scale_C: Tensor) -> Tensor:
    x = _wide(x)
    return (x - _broadcast(mean_C, x)) * _broadcast(scale_C, x)


def _wide(x: Tensor) -> Tensor:
    """``x`` in float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _sum(x: Tensor) -> Tensor:
    """Sum over all axes but the channels', (C,)."""
    return x.sum([axis for axis in range(x.ndim) if axis != 1])


def _broadcast(x_C: Tensor, like: Tensor) -> Tensor:
    """Put (C,) beside the channels of ``like``, (B, C, …)."""
    return x_C.view(1, -1, *[1] * (like.ndim - 2))
