"""Latency of one forward pass, with several models interleaved in one process."""

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from ssdistill.errors import UserError
from ssdistill.measure.interleaved import Clock, TimedTurns, speedup_of, time_in_turns
from ssdistill.models.examples import noise_images
from ssdistill.models.model import Model

MemoryFormat = Literal["channels_last", "contiguous"]


@dataclass(frozen=True)
class Latency:
    """Wall time of one forward pass, input to embedding.

    Attributes:
        name: as given by the caller.
        runtime: library, version and memory format that ran it; compare within one runtime.
        batch_size: inputs per call.
        threads: threads the runtime was given.
        calls: timed calls.
        p50_ms, p90_ms: median and 90 % quantile over the calls, in ms.
    """

    name: str
    runtime: str
    batch_size: int
    threads: int
    calls: int
    p50_ms: float
    p90_ms: float


@dataclass(frozen=True)
class PairedLatency:
    """A model timed in turns with a reference.

    Attributes:
        runtime, reference_runtime: what ran the model, and what its reference; where they
            differ, ``speedup`` is not what compression alone has gained.
        batch_size, threads: inputs per call; threads both runtimes were given.
        p50_ms, p90_ms: median and 90 % quantile of the model's calls, in ms.
        reference_p50_ms: median of the reference's calls, in ms.
        speedup: how many times faster than the reference: the median over rounds of the ratio
            within a round; ``speedup_low`` and ``speedup_high`` its interval, see
            :class:`ssdistill.measure.interleaved.Speedup`.
        rounds: how many rounds it is the median of.
    """

    runtime: str
    reference_runtime: str
    batch_size: int
    threads: int
    p50_ms: float
    p90_ms: float
    reference_p50_ms: float
    speedup: float
    speedup_low: float
    speedup_high: float
    rounds: int


def compare_latency(
    models: Mapping[str, Any],
    inputs: Tensor | None = None,
    batch_sizes: Sequence[int] = (1, 64),
    threads: int = 1,
    rounds: int = 20,
    calls: int = 3,
    seconds_each: float = 15.0,
    memory_format: MemoryFormat = "channels_last",
    clock: Clock = time.perf_counter,
) -> list[Latency]:
    """Time models in interleaved rounds, so that a busy machine slows all of them equally.

    Most of what int8 seems to gain over PyTorch is the runtime: give the float model a second
    time through :func:`ssdistill.artifacts.runtimes.onnx_cache.float_onnx` and compare within ONNX
    Runtime.

    Args:
        models: PyTorch models and files for a runtime, by name; left as they are.
        inputs: what they are given, repeated up to the batch size; the first PyTorch model's
            own example by default.
        batch_sizes: inputs per call; one row each per model.
        threads: threads for each runtime.
        rounds: times every model gets its turn.
        calls: timed calls per turn, after one that is not timed; more where they are quick.
        seconds_each: a model that has been timed for so long at one batch size gets no more
            turns than three: a large teacher must not hold up the others.
        memory_format: layout for PyTorch models of images; it alone can be worth a factor of two.
        clock: seconds, monotonic.

    Returns:
        rows by batch size, then in the order of ``models``.

    Raises:
        UserError: no inputs given and no model that has an example.
    """
    rows = []
    with _opened(models, threads, memory_format) as ready:
        for batch_size in batch_sizes:
            x = example(models.values(), batch_size, inputs)
            times = _timed(ready, x, memory_format, rounds, calls, seconds_each, clock)
            for name, model in models.items():
                p50, p90, count = _quantiles(times[name])
                runtime = runtime_of(model, memory_format, x.ndim)
                rows.append(Latency(name, runtime, batch_size, threads, count, p50, p90))
    return rows


def paired_latency(
    model: Any,
    reference: Any,
    inputs: Tensor | None = None,
    *,
    batch_size: int = 1,
    threads: int = 1,
    rounds: int = 12,
    calls: int = 3,
    seconds_each: float = 5.0,
    memory_format: MemoryFormat = "channels_last",
    clock: Clock = time.perf_counter,
) -> PairedLatency:
    """Time a model interleaved with a reference.

    Arguments as for :func:`compare_latency`. For what compression alone has gained, both must
    be files for the same runtime, or both PyTorch models.

    Raises:
        UserError: no inputs given and no model that has an example.
    """
    pair = {"reference": reference, "model": model}
    with _opened(pair, threads, memory_format) as ready:
        x = example((model, reference), batch_size, inputs)
        times = _timed(ready, x, memory_format, rounds, calls, seconds_each, clock)
    p50, p90, _ = _quantiles(times["model"])
    speedup = speedup_of(times["reference"], times["model"])
    return PairedLatency(
        runtime=runtime_of(model, memory_format, x.ndim),
        reference_runtime=runtime_of(reference, memory_format, x.ndim),
        batch_size=batch_size,
        threads=threads,
        p50_ms=p50,
        p90_ms=p90,
        reference_p50_ms=_quantiles(times["reference"])[0],
        speedup=speedup.median,
        speedup_low=speedup.low,
        speedup_high=speedup.high,
        rounds=speedup.rounds,
    )


def latency_ms(
    model: Any, inputs: Tensor | None = None, batch_size: int = 1, **options: Any
) -> float:
    """Median latency of one model in ms; ``options`` as for :func:`compare_latency`."""
    return compare_latency({"": model}, inputs, (batch_size,), **options)[0].p50_ms


def example(models: Any, batch_size: int, inputs: Tensor | None = None) -> Tensor:
    """Return ``batch_size`` inputs on the CPU.

    They are ``inputs``, repeated as often as it takes, or else the first example that one of
    ``models`` has.

    Raises:
        UserError: there is neither.
    """
    if inputs is not None and len(inputs):
        repeats = -(-batch_size // len(inputs))
        return torch.cat([inputs] * repeats)[:batch_size].cpu()
    for model in models:
        if isinstance(model, nn.Module):
            return cast("Model", model).example(batch_size).cpu()
        if getattr(model, "spec", None) is not None:
            return noise_images(model.spec, batch_size)
    raise UserError("a model file has no example inputs: pass inputs to time it with")


def runtime_of(model: Any, memory_format: MemoryFormat = "channels_last", axes: int = 4) -> str:
    """What runs a model: library, version and, for PyTorch on images, the memory format."""
    if not isinstance(model, nn.Module):
        return model.version()
    return f"torch {torch.__version__} eager" + (f" {memory_format}" if axes == 4 else "")


@contextmanager
def _opened(
    models: Mapping[str, Any], threads: int, memory_format: MemoryFormat
) -> Iterator[dict[str, Any]]:
    """The models with so many threads; PyTorch's are copies, on the CPU and in eval mode."""
    before = torch.get_num_threads()
    files = [model for model in models.values() if not isinstance(model, nn.Module)]
    sessions = [model.session_threads for model in files]
    ready = {}
    try:
        torch.set_num_threads(threads)
        for name, model in models.items():
            ready[name] = model
            if not isinstance(model, nn.Module):
                model.session_threads = threads
                continue
            ready[name] = copy.deepcopy(model).eval()
            if model.device.type != "cpu":
                ready[name].cpu()
            ready[name].net.to(memory_format=_torch_format(memory_format))
        yield ready
    finally:
        torch.set_num_threads(before)
        for model, count in zip(files, sessions, strict=True):
            model.session_threads = count


@torch.inference_mode()
def _timed(
    models: Mapping[str, Any],
    x: Tensor,
    memory_format: MemoryFormat,
    rounds: int,
    repeats: int,
    seconds_each: float,
    clock: Clock,
) -> TimedTurns:
    calls: dict[str, Callable[[], Any]] = {}
    for name, model in models.items():
        images = isinstance(model, nn.Module) and x.ndim == 4
        inputs = x.contiguous(memory_format=_torch_format(memory_format)) if images else x
        calls[name] = partial(model, inputs)
    return time_in_turns(calls, rounds, repeats, seconds_each, clock)


def _quantiles(turns: Sequence[Sequence[float]]) -> tuple[float, float, int]:
    """Median and 90 % quantile in ms, and the number of calls."""
    seconds = [s for turn in turns for s in turn]
    p50, p90 = np.quantile(seconds, (0.5, 0.9)) * 1e3
    return float(p50), float(p90), len(seconds)


def _torch_format(memory_format: MemoryFormat) -> torch.memory_format:
    return torch.channels_last if memory_format == "channels_last" else torch.contiguous_format
