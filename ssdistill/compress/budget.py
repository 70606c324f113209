"""Cost budgets, and bisection to the ratio that meets one."""

import contextlib
from collections.abc import Callable, Iterator

import torch
from safetensors.torch import save

from ssdistill.artifacts.runtimes.onnx_cache import float_onnx
from ssdistill.compress import Context
from ssdistill.errors import UserError
from ssdistill.measure.latency import paired_latency
from ssdistill.measure.macs import count_macs
from ssdistill.measure.parameters import count_parameters
from ssdistill.models.model import Model

HALVINGS = {"macs": 8, "parameters": 8, "bytes": 8, "latency": 5}
"""Bisections of the ratio: 1/256 is finer than any rounding to multiples of 8, 1/32 than a time
can be measured."""
Share = Callable[[Model], float]


def weight_bytes(model: Model) -> int:
    """Bytes of the model's uncompressed ``model.safetensors``, header included."""
    layout = torch.contiguous_format
    state = model.net.state_dict()
    return len(save({k: v.detach().cpu().clone(memory_format=layout) for k, v in state.items()}))


@contextlib.contextmanager
def share_of(key: str, reference: Model) -> Iterator[Share]:
    """Yield ``share(model)``, the cost of ``model`` as a fraction of ``reference``.

    Args:
        key: ``macs``, ``parameters``, ``bytes``, or ``latency``: the time for one input in ONNX
            Runtime on one thread, measured in turns with the reference.
    """
    if key == "latency":
        with float_onnx(reference) as dense:
            yield lambda model: _latency_share(model, dense)
        return
    count = {"macs": count_macs, "parameters": count_parameters, "bytes": weight_bytes}[key]
    whole = count(reference)
    yield lambda model: count(model) / whole


def _latency_share(model: Model, dense: object) -> float:
    with float_onnx(model) as candidate:
        return (
            1 / paired_latency(candidate, dense, model.example(1), batch_size=1, threads=1).speedup
        )


def search(
    key: str,
    budget: float,
    make: Callable[[float], Model],
    reference: Model,
    context: Context,
    least: str,
) -> tuple[float, float]:
    """Bisect to the smallest ratio within ``budget``; return it and its cost fraction.

    Args:
        key: of :func:`share_of`.
        budget: share of the reference's cost.
        make: the model after removing that ratio of what can be removed.
        least: what the message about a budget out of reach says of the settings.

    Raises:
        UserError: out of reach; the nearest share that can be reached is given.
    """
    with share_of(key, reference) as share:
        smallest = share(make(1.0))
        if smallest > budget:
            raise UserError(
                f"prune: {key}={budget:g} cannot be reached for '{reference.name}': "
                f"{least} still leave {smallest:.3f}"
            )
        if (already := share(make(0.0))) <= budget:
            return 0.0, already
        low, high, share_at_high = 0.0, 1.0, smallest
        for _ in context.progress(range(HALVINGS[key]), f"prune to {budget:.0%} of {key}"):
            middle = (low + high) / 2
            cost = share(make(middle))
            low, high, share_at_high = (
                (low, middle, cost) if cost <= budget else (middle, high, share_at_high)
            )
    return high, share_at_high
