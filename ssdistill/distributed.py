"""Processes that work together: what each of them knows of the others."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_nn
from torch import Tensor

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from lightning_fabric.connector import _PRECISION_INPUT

T = TypeVar("T")
P = TypeVar("P")
_sharing: ContextVar[bool] = ContextVar("sharing", default=False)
NO_LIMIT = timedelta(days=7)
"""For messages: a process may wait for hours while another plans, exports or measures."""


class Team:
    """Processes that one of them calls to do a piece of work with it; this one is alone.

    Attributes:
        size: how many there are.
    """

    size: int = 1

    def do(self, work: Callable[..., T], *arguments: Any, **own: Any) -> T:
        """Do a piece of work in all processes, and return what it returned in this one.

        Args:
            work: a function at the top level of a module, which may call :func:`each`.
            arguments: in all processes.
            own: further arguments in this process, which have defaults for the others.
        """
        with sharing(False):
            return work(*arguments, **own)

    def fabric(
        self, precision: "_PRECISION_INPUT | None" = None, *, find_unused: bool = False
    ) -> "Fabric":
        """Return a Fabric to train with in a piece of work that several processes do."""
        raise NotImplementedError


class Assembled(Team):
    """Processes that are in a training, and all call for the same work at the same time."""

    @property
    def size(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """How many there are now."""
        return world_size()

    def do(self, work: Callable[..., T], *arguments: Any, **own: Any) -> T:
        """Do a piece of work, which all processes of the training call for."""
        with sharing(world_size() > 1):
            return work(*arguments, **own)


ALONE, ASSEMBLED = Team(), Assembled()


@contextmanager
def sharing(shared: bool) -> Iterator[None]:
    """Within the block, :func:`each` shares its parts among the processes, or does not."""
    before = _sharing.set(shared)
    try:
        yield
    finally:
        _sharing.reset(before)


def is_shared() -> bool:
    """Whether all processes do the present piece of work."""
    return _sharing.get()


def each(
    parts: Sequence[P], make: Callable[[P], T], forwarded: type[Exception]
) -> Iterator[tuple[P, T]]:
    """Yield every part, in order, with what ``make`` makes of it.

    In a shared piece of work, the processes take turns in making them. Process 0 gets all; the
    others are to iterate, too, and get nothing.

    Args:
        forwarded: errors of ``make`` that process 0 raises, whichever process they are found in.
    """
    if not is_shared():
        yield from ((part, make(part)) for part in parts)
        return
    size, number = world_size(), rank()
    for first in range(0, len(parts), size):
        turn = parts[first : first + size]
        made = _result_or_error(make, turn[number], forwarded) if number < len(turn) else None
        for part, found in zip(turn, gather_to_first(made), strict=False):
            if isinstance(found, forwarded):
                raise found
            yield part, cast("T", found)


def _result_or_error(make: Callable[[P], T], part: P, forwarded: type[Exception]) -> T | Exception:
    try:
        return make(part)
    except forwarded as error:
        return error


def world_size() -> int:
    """Processes that train together; 1 outside ``torch.distributed``."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def broadcast(value: T, source: int = 0) -> T:
    """Return the ``value`` of process ``source`` in every process; waits for it without limit."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=source, group=_messages())
    return values[0]


def gather_values(value: T) -> list[T]:
    """Return the values of all processes, by rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value, group=_messages())
    return values


def gather_to_first(value: T) -> list[T]:
    """Return the values of all processes, by rank, in process 0, and none in the others."""
    if world_size() == 1:
        return [value]
    values: list[Any] | None = [None] * world_size() if rank() == 0 else None
    dist.gather_object(value, values, group=_messages())
    return values or []


def largest(number: int) -> int:
    """Return the largest ``number`` of any process."""
    if world_size() == 1:
        return number
    numbers = torch.tensor([number])
    dist.all_reduce(numbers, dist.ReduceOp.MAX, group=_messages())
    return int(numbers.item())


@lru_cache(maxsize=1)
def _group_for(default: Any) -> Any:
    return dist.new_group(backend="gloo", timeout=NO_LIMIT)


def _messages() -> Any:
    """Return a group for messages on the CPU; the default one may be for another device."""
    return _group_for(dist.group.WORLD)


@torch.no_grad()
def all_gather_rows(x_BD: Tensor) -> Tensor:
    """Rows of all processes in rank order, (world * B, ...), without gradient.

    Every process must bring the same number of rows. With one process the input itself
    (detached) comes back.
    """
    x_BD = x_BD.detach()
    if world_size() == 1:
        return x_BD
    x_BD = x_BD.contiguous()
    rows = [torch.empty_like(x_BD) for _ in range(world_size())]
    dist.all_gather(rows, x_BD)
    return torch.cat(rows)


def gather_with_gradient(x_BD: Tensor) -> Tensor:
    """Rows of all processes in rank order, (world * B, ...), through which gradients flow back.

    For losses over the whole batch: every process computes the same loss, each row's gradient
    is summed over the processes, and the mean over processes that data-parallel training takes
    of the parameters' gradients is then that of one process with all rows.
    """
    if world_size() == 1:
        return x_BD
    return torch.cat(dist_nn.all_gather(x_BD.contiguous()))


def mean_with_gradient(x: Tensor) -> Tensor:
    """Elementwise mean of ``x`` over all processes, through which gradients flow back.

    As with :func:`gather_with_gradient`, the mean over processes of the parameters' gradients is
    that of one process, if all compute the same loss from it.
    """
    if world_size() == 1:
        return x
    return dist_nn.all_reduce(x.contiguous()) / world_size()


@torch.no_grad()
def mean_over_processes(x: Tensor) -> Tensor:
    """Elementwise mean of ``x`` over all processes, without gradient."""
    x = x.detach()
    if world_size() == 1:
        return x
    x = x.clone()
    dist.all_reduce(x)
    return x / world_size()


def mean_values(values: Mapping[str, Tensor | float], device: torch.device) -> dict[str, float]:
    """Return numbers by name as means over all processes; ``device`` is that of the messages."""
    numbers = [float(torch.as_tensor(value).detach()) for value in values.values()]
    if world_size() > 1:
        numbers = mean_over_processes(torch.tensor(numbers, device=device)).tolist()
    return dict(zip(values, numbers, strict=True))
