"""Streaming means and covariances of layer outputs on unlabeled inputs."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ssdistill.errors import UserError
from ssdistill.models.factorized import Factorized
from ssdistill.models.model import Model

Hear = Callable[[str, nn.Module, Tensor, Tensor], None]


class Moments(NamedTuple):
    """Mean and covariance of a layer's output channels, float64.

    Attributes:
        mean_O, covariance_OO: over all outputs; the covariance divides by ``count``.
        count: how many outputs: inputs times positions.
    """

    mean_O: Tensor
    covariance_OO: Tensor
    count: int


class Positions(NamedTuple):
    """At how many positions a layer works for one input, summed over its calls.

    Attributes:
        before: of its input: H W of a map, or tokens.
        between: of a map that is as high as its output and as wide as its input.
        after: of its output.
    """

    before: float = 0
    between: float = 0
    after: float = 0


class Running:
    """Streaming moments of rows; independent of the order of batches."""

    def __init__(self) -> None:
        self.count = 0

    def update(self, rows_NO: Tensor) -> None:
        rows_NO = rows_NO.double()
        if not self.count:
            # A common shift changes nothing but keeps a large mean from eating the digits.
            self.shift_O = rows_NO.mean(0)
            self.total_O = torch.zeros_like(self.shift_O)
            self.gram_OO = rows_NO.new_zeros(len(self.shift_O), len(self.shift_O))
        rows_NO = rows_NO - self.shift_O
        self.count += len(rows_NO)
        self.total_O += rows_NO.sum(0)
        self.gram_OO.addmm_(rows_NO.T, rows_NO)

    def compute(self, whose: str) -> Moments:
        """Return the moments of all rows so far.

        Raises:
            UserError: no row came, or one was not finite; the message begins with ``whose``.
        """
        if not self.count:
            raise UserError(f"{whose} is never called in a forward pass; exclude it")
        mean_O = self.total_O / self.count
        covariance_OO = self.gram_OO / self.count - torch.outer(mean_O, mean_O)
        if not covariance_OO.isfinite().all():
            raise UserError(f"{whose} outputs NaN or infinity; check its weights and inputs")
        return Moments(self.shift_O + mean_O, covariance_OO, self.count)


@torch.no_grad()
def output_stats(
    model: Model, inputs: Tensor, layers: Iterable[str], batch_size: int = 32
) -> dict[str, Moments]:
    """Compute the mean and covariance of layer outputs.

    Args:
        model: runs in eval mode, and is left as it was.
        inputs: unlabeled inputs of the model, (N, ...).
        layers: names in ``model.net`` of convolutions and linear layers; of maps every
            position counts, of sequences every token.
        batch_size: inputs at a time.

    Raises:
        UserError: outputs of a layer that are not finite, or a layer that is never called.
    """
    sums = {name: Running() for name in layers}

    def add(name: str, layer: nn.Module, _: Tensor, output: Tensor) -> None:
        sums[name].update(rows_of(layer, output))

    with listening(model, layers, add):
        for batch in inputs.split(batch_size):
            model(batch.to(model.device))
    return {name: total.compute(f"{model.name}: layer '{name}'") for name, total in sums.items()}


@torch.no_grad()
def joint_stats(
    pair: tuple[Model, Model], inputs: Tensor, layer: str, batch_size: int = 32
) -> Moments:
    """Moments of one layer's outputs in two models side by side: (2 O) channels.

    Args:
        pair: two models of which both call ``layer`` equally often, on maps of the same size.
        inputs, batch_size: as for :func:`output_stats`.

    Raises:
        UserError: as for :func:`output_stats`.
    """
    total, calls = Running(), 0
    for batch in inputs.split(batch_size):
        rows = [_outputs(model, batch, layer, calls) for model in pair]
        calls = len(rows[0])
        for both in zip(*rows, strict=True):
            total.update(torch.cat(both, 1))
    return total.compute(f"{pair[0].name}: layer '{layer}'")


class _StopForward(Exception):
    """Raised in a layer to end the forward pass early."""


def _outputs(model: Model, batch: Tensor, layer: str, calls: int) -> list[Tensor]:
    """Return what the layer puts out, by call.

    From the last of ``calls`` on (0: unknown), the rest of the network need not run.
    """
    outputs: list[Tensor] = []

    def accumulate(_: str, module: nn.Module, __: Tensor, output: Tensor) -> None:
        outputs.append(rows_of(module, output))
        if len(outputs) == calls:
            raise _StopForward

    with listening(model, [layer], accumulate), suppress(_StopForward):
        model(batch.to(model.device))
    return outputs


def rows_of(layer: nn.Module, output: Tensor) -> Tensor:
    """The outputs of a layer as rows (N, O): one per position or token."""
    rows = output.movedim(_axis(layer), -1)
    return rows.reshape(-1, rows.shape[-1])


@torch.no_grad()
def called_layers(model: Model) -> dict[str, Positions]:
    """The plain convolutions and linear layers that the model calls, in that order.

    Skipped are layers with groups, layers of a subclass (they compute something else), those
    that share their weight with another, and the parts of what is factorized already.
    """
    modules = dict(model.net.named_modules())
    parts = {part for m in modules.values() if isinstance(m, Factorized) for part in m}
    holders = Counter(p for m in modules.values() for p in m._parameters.values())
    names = [
        name
        for name, module in modules.items()
        if name
        and type(module) in (nn.Conv2d, nn.Linear)
        and getattr(module, "groups", 1) == 1
        and module not in parts
        and holders[module._parameters["weight"]] == 1
    ]
    inputs, layers = model.example(2), {}

    def note(name: str, layer: nn.Module, layer_input: Tensor, output: Tensor) -> None:
        before, after = (
            t.numel() / t.shape[_axis(layer)] / len(inputs) for t in (layer_input, output)
        )
        between = after
        if isinstance(layer, nn.Conv2d):
            between = after / output.shape[3] * layer_input.shape[3]
        earlier = layers.get(name, Positions())
        new = (before, between, after)
        layers[name] = Positions(*(a + b for a, b in zip(earlier, new, strict=True)))

    with listening(model, names, note):
        model(inputs)
    return layers


def _axis(layer: nn.Module) -> int:
    return -1 if isinstance(layer, nn.Linear) else 1


@contextmanager
def listening(model: Model, layers: Iterable[str], accumulate: Hear) -> Iterator[None]:
    """Call ``hear(name, layer, input, output)`` for every call of the layers in the context.

    The model is in eval mode.
    """

    def hook(name: str, layer: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> None:
        accumulate(name, layer, args[0] if args else kwargs["input"], output)

    with evaluating(model):
        hooks = [
            model.net.get_submodule(name).register_forward_hook(
                partial(hook, name), with_kwargs=True
            )
            for name in layers
        ]
        try:
            yield
        finally:
            for handle in hooks:
                handle.remove()


@contextmanager
def evaluating(*models: Model) -> Iterator[None]:
    """Put models in eval mode inside the ``with`` block, and restore the mode of every module."""
    modes = [(part, part.training) for model in models for part in model.modules()]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
