"""Encode a batch a few images at a time, with the gradient of the whole batch.

GradCache (arXiv:2101.06983): the encoder is run on one micro-batch after the other without keeping
what a gradient needs; losses see the outputs for all images; the backward pass encodes each
micro-batch again, with the same random numbers, and adds up its gradients. A step costs one more
forward pass of the encoder and is that of the whole batch, except for batch norm: its statistics
are those of the images of one micro-batch, of all their views that are encoded together.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ssdistill.models.model import Model
from ssdistill.models.representation import Representation
from ssdistill.train.seeding import random_state, restore_random_state
from ssdistill.train.task import Task

Outputs = Tensor | Representation | tuple[Tensor, ...]
"""What a network returns: every tensor has a row for each row of the input."""


@contextmanager
def in_microbatches(task: Task, images: int, microbatch: int | None) -> Iterator[None]:
    """Make every encoder of ``task`` encode ``microbatch`` images at a time inside the block.

    The trained one, momentum networks and teachers. Views that pass an encoder together stay
    together, so that one micro-batch has a row for each view of its images. The heads see the
    whole batch. The backward pass may follow after the block.

    Args:
        images: in the batch.
        microbatch: at most so many at a time, all micro-batches about equally large; None, or no
            fewer than there are, for all at once.
    """
    if microbatch is None or microbatch >= images:
        yield
        return
    modules = [m for network in (task, *task.teachers.values()) for m in network.modules()]
    encoders = [module for module in modules if isinstance(module, Model)]
    division = Division(images, microbatch)
    for encoder in encoders:
        encoder.division = division
    try:
        yield
    finally:
        for encoder in encoders:
            encoder.division = None


class Division:
    """Calls a network on one micro-batch after the other.

    Args:
        images: in the batch.
        microbatch: at most so many at a time.
    """

    def __init__(self, images: int, microbatch: int):
        self.images, self.microbatch = images, microbatch

    def __call__(self, network: nn.Module, call: Callable[..., Outputs], *rows: Tensor) -> Any:
        """Return ``call(*rows)``, computed in parts.

        Args:
            network: has the parameters and buffers that ``call`` uses.
            call: a function of a part of ``rows``, row by row but for batch statistics.
            rows: of equal length: one for each image, or for each image of several views, view
                by view.
        """
        run = _Run(network, call, *self._parts(len(rows[0])))
        trained = [p for p in network.parameters() if p.requires_grad]
        if not torch.is_grad_enabled() or not (trained or any(x.requires_grad for x in rows)):
            return run.restored(run.joined([run(part) for part in run.take(rows)]))
        return run.restored(_Recomputed.apply(run, len(rows), *rows, *trained))

    def _parts(self, count: int) -> tuple[int, list[slice]]:
        """How many views ``count`` rows are of, and the images of each micro-batch."""
        views = count // self.images if count % self.images == 0 else 1
        images = count // views
        parts = -(-images // self.microbatch)
        bounds = [images * number // parts for number in range(parts + 1)]
        return views, [slice(*pair) for pair in pairwise(bounds)]


def by_parts(encoder: Model, network: nn.Module, call: Callable[..., Any], *rows: Tensor) -> Any:
    """Return ``call(*rows)``, in micro-batches where ``encoder`` is to be run in such.

    For methods that train a network other than by calling their encoder; see :class:`Division`.
    """
    return call(*rows) if encoder.division is None else encoder.division(network, call, *rows)


class _Run:
    """One call of a network in parts."""

    def __init__(
        self, network: nn.Module, call: Callable[..., Outputs], views: int, parts: list[slice]
    ):
        self.network, self.call = network, call
        self.views, self.parts = views, parts
        self._rebuild: Callable[[Sequence[Tensor]], Outputs] = tuple

    def __call__(self, part: Sequence[Tensor]) -> list[Tensor]:
        """The outputs for one part, as a list."""
        outputs = self.call(*part)
        self._rebuild = _rebuild(outputs)
        return _tensors(outputs)

    def take(self, rows: Sequence[Tensor]) -> Iterator[list[Tensor]]:
        """Each part of some tensors, without a copy where it is one slice."""
        for part in self.parts:
            by_view = ([x[part] for x in row.chunk(self.views)] for row in rows)
            yield [x[0] if self.views == 1 else torch.cat(x) for x in by_view]

    def joined(self, parts: Sequence[list[Tensor]]) -> list[Tensor]:
        """Outputs of all parts, in the order of the rows."""
        return [
            torch.cat([x.chunk(self.views)[view] for view in range(self.views) for x in column])
            for column in zip(*parts, strict=True)
        ]

    def restored(self, tensors: Sequence[Tensor]) -> Outputs:
        """The outputs as the network returns them."""
        return self._rebuild(tensors)


def _rebuild(outputs: Outputs) -> Callable[[Sequence[Tensor]], Outputs]:
    """Return a function that undoes :func:`_tensors` and keeps no tensor."""
    if isinstance(outputs, Tensor):
        return lambda tensors: tensors[0]
    if not isinstance(outputs, Representation):
        return tuple
    first, names = 1 + (outputs.projection_BP is not None), tuple(outputs.maps)
    return lambda tensors: Representation(
        tensors[0],
        tensors[1] if first == 2 else None,
        dict(zip(names, tensors[first:], strict=True)),
    )


def _tensors(outputs: Outputs) -> list[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs]
    if isinstance(outputs, Representation):
        projection = [] if outputs.projection_BP is None else [outputs.projection_BP]
        return [outputs.embedding_BD, *projection, *outputs.maps.values()]
    return list(outputs)


class _Recomputed(torch.autograd.Function):
    """Outputs of a network that keep nothing but its inputs for the backward pass.

    Unlike with ``torch.utils.checkpoint``, whose recomputed tensors wait for a backward pass that
    asks for them, only one part's activations exist at any moment.
    """

    @staticmethod
    def forward(ctx: Any, run: _Run, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        rows, ctx.trained = tensors[:count], tensors[count:]
        ctx.run, device = run, rows[0].device.type
        ctx.autocast = {
            "device_type": device,
            "dtype": torch.get_autocast_dtype(device),
            "enabled": torch.is_autocast_enabled(device),
        }
        ctx.save_for_backward(*rows)
        ctx.set_materialize_grads(False)
        ctx.random, outputs = [], []
        for part in run.take(rows):
            ctx.random.append(random_state())
            outputs.append(run(part))
        return tuple(run.joined(outputs))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        run, rows, trained = ctx.run, ctx.saved_tensors, ctx.trained
        asked = ctx.needs_input_grad[2:]
        weights = [p for p, needed in zip(trained, asked[len(rows) :], strict=True) if needed]
        used = [i for i, grad in enumerate(grads) if grad is not None]
        sums: list[Tensor | None] = [None] * len(weights)
        row_parts: list[list[Tensor]] = []
        parts = zip(run.take(rows), run.take([grads[i] for i in used]), ctx.random, strict=True)
        for part, part_grads, random in parts if used else ():
            inputs = [
                x.detach().requires_grad_(needed)
                for x, needed in zip(part, asked[: len(rows)], strict=True)
            ]
            autocast = torch.autocast(**ctx.autocast)
            with _replayed_randomness(run.network, random), autocast, torch.enable_grad():
                outputs = run(inputs)
            found = _gradients([outputs[i] for i in used], part_grads, weights, inputs)
            for i, grad in enumerate(found[: len(weights)]):
                if grad is not None:
                    sums[i] = grad if sums[i] is None else sums[i] + grad
            row_parts.append(found[len(weights) :])
        by_row = iter(run.joined(row_parts)) if row_parts and row_parts[0] else iter(())
        by_weight = iter(sums)
        counted = enumerate(asked)
        return (
            None,
            None,
            *(
                (next(by_row, None) if i < len(rows) else next(by_weight)) if needed else None
                for i, needed in counted
            ),
        )


def _gradients(
    outputs: list[Tensor], grads: list[Tensor], weights: list[Tensor], inputs: list[Tensor]
) -> list[Any]:
    """Gradients at the weights, None where there is none, then at the inputs that need one."""
    pairs = [(x, grad) for x, grad in zip(outputs, grads, strict=True) if x.requires_grad]
    rows = [x for x in inputs if x.requires_grad]
    if not pairs:
        return [None] * len(weights) + [torch.zeros_like(x) for x in rows]
    ends, end_grads = zip(*pairs, strict=True)
    found = torch.autograd.grad(ends, [*weights, *rows], end_grads, allow_unused=True)
    count = len(weights)
    at_rows = [
        torch.zeros_like(x) if g is None else g for x, g in zip(rows, found[count:], strict=True)
    ]
    return [*found[:count], *at_rows]


@contextmanager
def _replayed_randomness(network: nn.Module, random: dict[str, Tensor]) -> Iterator[None]:
    """Draw again what was drawn from ``random`` on, and leave generators and buffers alone.

    Running statistics were updated when the part was first encoded.
    """
    now = random_state()
    held = [
        (module, name, buffer)
        for module in network.modules()
        for name, buffer in module._buffers.items()
        if module.training and buffer is not None
    ]
    restore_random_state(random)
    # Copies take what is written; writing to the buffers and back would void other graphs.
    for module, name, buffer in held:
        module._buffers[name] = buffer.clone()
    try:
        yield
    finally:
        for module, name, buffer in held:
            module._buffers[name] = buffer
        restore_random_state(now)
