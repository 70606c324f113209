"""Observe the inputs of chosen layers in a forward pass, and follow their outputs.

A tensor is recognized by its ``id()``. Every followed output y has one :class:`Link` at a time::

    conv2d / linear      y                          link, direct
      batch_norm         scale * y + shift          link moves to the result
      mul by channel     scale * y + shift          link moves to the result
      permute            axes moved                 link moves to the result
      dropout, to, …     unchanged (see SAME)       link moves to the result
      add                scale * y + shift + stream recorded; the link ends
      anything else                                 the link ends

Invariants:

- ``_links`` maps ``id(link.tensor)`` to the link, and the link holds the tensor: while an id is
  in ``_links``, Python cannot give it to another tensor. ``_outputs`` holds y for the same reason.
- Weights and running means are found by id as well; ``net`` keeps them alive.
- ``call.events`` counts what was learned of a call. A first, full run counts the
  events of the chosen layers; later runs end with :class:`_AllEventsSeen` at the last.
"""

import copy
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ssdistill.compress.fitting.calls import (
    Call,
    ConvArguments,
    LinearArguments,
    Link,
    NormArguments,
    layers_of,
    rows_at,
)
from ssdistill.models.model import Model

ADDITIONS = {"add", "add_", "__add__", "__radd__", "__iadd__"}
PRODUCTS = {"mul", "mul_", "__mul__", "__rmul__", "__imul__", "multiply"}
SAME = {"dropout", "contiguous", "to", "float"}
ARGUMENTS = {"conv2d": ConvArguments, "linear": LinearArguments}
NORMS = nn.BatchNorm1d | nn.BatchNorm2d | nn.SyncBatchNorm

Places = Callable[[int, int], Tensor | None]


class _AllEventsSeen(Exception):
    """Ends the forward pass once every expected event has been observed."""


class Observer(TorchFunctionMode):
    """Collect the calls of chosen layers during a forward pass.

    A layer is identified by its weight among the arguments of ``conv2d`` and ``linear``, so that
    any padding by its module is included. A weight that is
    standardized or parametrized on the way there is not the layer's own and goes unseen.

    Args:
        net: the network that will run.
        layers: names of convolutions and linear layers in it.
        places: ``places(count, length)`` gives the indices of the positions to sample, out of
            ``length`` for each of ``count`` inputs; None for all.
        inputs: whether to record the inputs of the layers.
        streams: whether to follow outputs into residual additions.
        events: number of events after which to end the forward pass; 0 runs it to the end.
    """

    def __init__(
        self,
        net: nn.Module,
        layers: Collection[str],
        places: Places,
        inputs: bool,
        streams: bool,
        events: int,
    ):
        super().__init__()
        self.places, self.inputs, self.streams, self.events = places, inputs, streams, events
        self.calls: dict[str, list[Call]] = {}
        modules = dict(net.named_modules())
        # A parametrized weight is a new tensor at every access, so its id identifies nothing.
        weights = {name: modules[name]._parameters.get("weight") for name in layers}
        self._layers = {id(w): (n, modules[n]) for n, w in weights.items() if w is not None}
        self._norms = {id(m.running_mean): n for n, m in modules.items() if isinstance(m, NORMS)}
        self._links: dict[int, Link] = {}
        self._outputs: dict[int, tuple[Tensor, Call]] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        operands = [*args, *kwargs.values()]
        if operands and isinstance(operands[0], tuple | list):
            operands = [*operands[0], *operands[1:]]
        linked = [self._links[i] for i in {id(a): 0 for a in operands} if i in self._links]
        # Before the operation, since an in-place addition overwrites one operand.
        if self.streams and name in ADDITIONS:
            for link in linked:
                self._add(link, args)
        result = func(*args, **kwargs)
        parts = result if isinstance(result, tuple | list) else (result,)
        if not any(isinstance(part, Tensor) for part in parts):
            return result
        for argument in operands:
            if id(argument) in self._outputs:
                self._outputs[id(argument)][1].uses += 1
        for link in linked:
            self._follow(link, name, args, kwargs, result)
        if name in ARGUMENTS:
            self._record_call(ARGUMENTS[name](*args, **kwargs), result)
        calls = [call for calls in self.calls.values() for call in calls]
        if self.events and sum(call.events for call in calls) >= self.events:
            raise _AllEventsSeen
        return result

    def _record_call(self, arguments: ConvArguments | LinearArguments, y: Tensor) -> None:
        name, layer = self._layers.get(id(arguments.weight), (None, None))
        if layer is None:
            return
        channel = arguments.channel
        places_P = self._places(y, channel)
        rows = rows_at(y, channel, places_P)
        width = y.shape[channel]
        call = Call(
            x_NGK=arguments.samples(y, places_P) if self.inputs else None,
            y_NO=rows,
            scale_O=rows.new_ones(width, dtype=torch.float64),
            shift_O=rows.new_zeros(width, dtype=torch.float64),
            own=arguments.bias is layer.bias,
        )
        self.calls.setdefault(name, []).append(call)
        self._outputs[id(y)] = (y, call)
        self._links[id(y)] = Link(y, call, list(range(y.ndim)), channel)

    def _places(self, z: Tensor, channel: int) -> Tensor | None:
        length = z.numel() // (len(z) * z.shape[channel])
        places_P = self.places(len(z), length)
        return None if places_P is None else places_P.to(z.device)

    def _add(self, link: Link, args: tuple) -> None:
        others = [a for a in args if isinstance(a, Tensor) and a is not link.tensor]
        if len(others) == 1 and others[0].shape == link.tensor.shape:
            stream, channel = link.as_output(others[0]), link.axes[link.channel]
            link.call.stream_NO = rows_at(stream, channel, self._places(stream, channel))
            link.call.events += 1

    def _follow(self, link: Link, name: str, args: tuple, kwargs: dict, result: Any) -> None:
        del self._links[id(link.tensor)]
        call, order = link.call, tuple(range(len(link.axes)))
        if name == "batch_norm" and link.channel == 1 and args[1] is not None:
            norm = NormArguments(*args, **kwargs)
            call.norm = self._norms.get(id(norm.running_mean)) if link.direct else call.norm
            call.apply_norm(norm)
        elif name in PRODUCTS and (factor_O := link.factor(args)) is not None:
            call.scale_O, call.shift_O = call.scale_O * factor_O, call.shift_O * factor_O
        elif name == "permute":
            order = kwargs.get("dims", args[1:])
            order = order if isinstance(order[0], int) else tuple(order[0])
        elif name not in SAME:
            # Stop following: a later addend could depend on the output itself.
            return
        call.events += 1
        self._links[id(result)] = link.permuted(result, order)


class Watched:
    """A copy of a model, in eval mode, whose layers can be observed.

    Attributes:
        model: the copy.
        traced: the calls of every layer on ``inputs``, in the order of execution.

    Args:
        model: left as it is.
        layers: names of the layers; by default all convolutions and linear layers.
        inputs: at least one input.
        streams: see :class:`Observer`.
        limit: how many positions of a layer's output to sample in a batch.
        seed: of the sampled positions.
    """

    def __init__(self, model: Model, inputs: Tensor, streams: bool, limit: int, seed: int):
        self.model = copy.deepcopy(model).eval()
        self.model.set_taps(())
        self.streams, self.limit, self.seed = streams, limit, seed
        layers = layers_of(self.model.net)
        self.traced = self._run(inputs, layers, lambda count, length: None, False, 0)

    def watch(
        self, batch: Tensor, index: int, layers: Collection[str], inputs: bool
    ) -> dict[str, list[Call]]:
        """Observe the calls of ``layers`` on a batch; end the forward pass after the last of them.

        Args:
            batch: inputs.
            index: number of the batch, so that both networks sample the same positions.
            inputs: whether to record the inputs of the layers.
        """
        events = sum(call.events for name in layers for call in self.traced[name])

        def places(count: int, length: int) -> Tensor | None:
            place_count = max(self.limit // count, 1)
            if place_count >= length:
                return None
            # Generators use only 32 bits of the seed.
            seed = (self.seed * 1_000_003 + index * 65_537 + length) % 2**32
            generator = torch.Generator().manual_seed(seed)
            return torch.randperm(length, generator=generator)[:place_count].sort().values

        return self._run(batch, layers, places, inputs, events)

    @torch.no_grad()
    def _run(
        self, x: Tensor, layers: Collection[str], places: Places, inputs: bool, events: int
    ) -> dict[str, list[Call]]:
        observer = Observer(self.model.net, layers, places, inputs, self.streams, events)
        try:
            with observer:
                self.model(x.to(self.model.device))
        except _AllEventsSeen:
            pass
        return observer.calls
