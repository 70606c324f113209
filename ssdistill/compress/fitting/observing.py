"""Observe how chosen layers of a network are called in a forward pass."""

import contextlib
import copy
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ssdistill.compress.fitting.arguments import ConvArguments, LinearArguments, rows_at
from ssdistill.compress.fitting.calls import Call, layers_of
from ssdistill.compress.fitting.following import ADDITIONS, OutputFollower
from ssdistill.models.model import Model

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
        # A parametrized weight is a new tensor at every access and so identifies nothing.
        weights = {name: modules[name]._parameters.get("weight") for name in layers}
        self._layers = {w: (name, modules[name]) for name, w in weights.items() if w is not None}
        norms = {
            m.running_mean: name
            for name, m in modules.items()
            if isinstance(m, NORMS) and m.running_mean is not None
        }
        self._follower = OutputFollower(norms, self._places)
        self._outputs: dict[Tensor, Call] = {}

    def observe(self, model: Model, x: Tensor) -> dict[str, list[Call]]:
        """Run ``model`` on ``x``, to the last expected event, and return the calls by layer."""
        with contextlib.suppress(_AllEventsSeen), self:
            model(x)
        return self.calls

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        operation = getattr(func, "__name__", "")
        operands = _tensors_of(args, kwargs)
        followed = self._follower.among(operands)
        if self.streams and operation in ADDITIONS:
            for tensor, position in followed.items():
                self._follower.record_stream(tensor, position, args)
        result = func(*args, **kwargs)
        results = result if isinstance(result, tuple | list) else (result,)
        if not any(isinstance(item, Tensor) for item in results):
            return result
        for tensor in operands:
            if tensor in self._outputs:
                self._outputs[tensor].uses += 1
        for tensor, position in followed.items():
            self._follower.advance(tensor, position, operation, args, kwargs, result)
        if operation in ARGUMENTS:
            self._record_call(ARGUMENTS[operation](*args, **kwargs), results[0])
        events = sum(call.events for calls in self.calls.values() for call in calls)
        if self.events and events >= self.events:
            raise _AllEventsSeen
        return result

    def _record_call(self, arguments: ConvArguments | LinearArguments, y: Tensor) -> None:
        name, layer = self._layers.get(arguments.weight, (None, None))
        if name is None or layer is None:
            return
        channel = arguments.channel
        places_P = self._places(y, channel)
        y_NO = rows_at(y, channel, places_P)
        width = y.shape[channel]
        call = Call(
            x_NGK=arguments.samples(y, places_P) if self.inputs else None,
            y_NO=y_NO,
            scale_O=y_NO.new_ones(width, dtype=torch.float64),
            shift_O=y_NO.new_zeros(width, dtype=torch.float64),
            own=arguments.bias is layer.bias,
        )
        self.calls.setdefault(name, []).append(call)
        self._outputs[y] = call
        self._follower.start(y, call, channel)

    def _places(self, z: Tensor, channel: int) -> Tensor | None:
        length = z.numel() // (len(z) * z.shape[channel])
        places_P = self.places(len(z), length)
        return None if places_P is None else places_P.to(z.device)


def _tensors_of(args: tuple, kwargs: dict) -> list[Tensor]:
    """The tensors among the arguments of an operation, and in its first one if that is a list."""
    values = [*args, *kwargs.values()]
    if values and isinstance(values[0], tuple | list):
        values = [*values[0], *values[1:]]
    return [value for value in values if isinstance(value, Tensor)]


class ObservedModel:
    """A copy of a model, in eval mode, whose layers can be observed.

    A first run to the end, at all positions, counts the events of every layer: the call itself,
    each operation that its output is followed through, and the addition of a residual stream.
    Later runs end with the last event of the layers they are to observe.

    Attributes:
        model: the copy.
        traced: the calls of every layer on ``inputs``, in the order of execution.

    Args:
        model: left as it is.
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

    def observe(
        self, batch: Tensor, index: int, layers: Collection[str], inputs: bool
    ) -> dict[str, list[Call]]:
        """Observe the calls of ``layers`` on a batch; end the forward pass after the last of them.

        Args:
            batch: inputs.
            index: number of the batch, so that both networks sample the same positions.
            layers: names of the layers.
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
        return observer.observe(self.model, x.to(self.model.device))
