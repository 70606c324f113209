"""Compare a model before and after a compression step: cost, speed, embeddings."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from torch import Tensor, nn

from ssdistill.artifacts.runtimes import RuntimeModel
from ssdistill.artifacts.runtimes.onnx_cache import float_onnx
from ssdistill.errors import UserError
from ssdistill.label_free.agreement import CKA_AT_LEAST, agreement
from ssdistill.measure.interleaved import Clock
from ssdistill.measure.latency import PairedLatency, paired_latency
from ssdistill.measure.model_costs import costs_of
from ssdistill.models.model import Model
from ssdistill.settings.registry import RUNTIMES

BATCH = 64
"""Inputs embedded and timed at a time, beside single ones."""
ROUNDS, SECONDS_EACH = 9, 1.5
NEIGHBORS = 10


def before_after(
    before: Any,
    after: Any,
    inputs: Tensor,
    before_folder: str | Path,
    after_folder: str | Path,
    *,
    threads: int = 1,
    clock: Clock = time.perf_counter,
) -> tuple[dict[str, float], dict[str, Any]]:
    """Compare a model before and after a step, without labels.

    Both are timed in turns in one runtime: that of ``after`` where it is a file for one, ONNX
    Runtime where both are PyTorch models, and PyTorch itself where ONNX cannot hold them.

    Args:
        before: the PyTorch model that the step was given; left as it is.
        after: what the step has made: a PyTorch model, or a file for a runtime.
        inputs: unlabeled inputs of the models; of fewer than four, there is no agreement.
        before_folder, after_folder: artifact folders they are saved in.
        threads: threads of the runtime.
        clock: seconds, monotonic.

    Returns:
        metrics, and the facts that a gate and a reader need.

        The metrics: under ``compress/`` the ``params``, ``params_nonzero``, ``macs``, ``bytes``,
        ``bytes_gzip``, ``latency_ms`` (one input) and ``latency_batch64_ms`` of ``after``, those
        of ``before`` with ``_before`` at the end (``params_before``), ``speedup`` and
        ``speedup_batch64`` with the ends of their intervals (``speedup_low``, ``speedup_high``),
        and ``smaller`` (bytes before over bytes after); under ``agree/parent/`` what
        :func:`ssdistill.label_free.agreement.agreement` says of the two. What cannot be
        measured (a model that no runtime can be timed with) is omitted.

        The facts: ``bytes`` and ``latency`` of ``after`` as fractions of those before, ``cka``, and
        the ``runtime`` that was timed. Fractions that are not known are NaN, which no gate passes.

    Raises:
        UserError: embeddings that are not finite.
    """
    costs = costs_of(after, after_folder, before if isinstance(before, nn.Module) else None)
    metrics = dict(costs)
    for name, value in costs_of(before, before_folder).items():
        metrics[f"{name}_before"] = value
    fraction_of_bytes = metrics["compress/bytes"] / metrics["compress/bytes_before"]
    metrics["compress/smaller"] = 1 / fraction_of_bytes
    timed, runtime = _timed(before, after, inputs, threads, clock)
    metrics |= timed
    agreed = agreed_on(before, after, inputs)
    metrics |= {name.replace("agree/", "agree/parent/", 1): v for name, v in agreed.items()}
    facts = {
        "bytes": fraction_of_bytes,
        "latency": 1 / timed["compress/speedup"] if timed else float("nan"),
        "cka": agreed.get("agree/cka", float("nan")),
        "runtime": runtime,
    }
    return metrics, facts


def agreed_on(before: Any, after: Any, inputs: Tensor) -> dict[str, float]:
    """Measure the agreement between the embeddings of two models.

    See :func:`ssdistill.label_free.agreement.agreement`.
    Of a handful of inputs, as many neighbors as usual would be all there are; of fewer than
    ``CKA_AT_LEAST``, nothing can be said.
    """
    if len(inputs) < CKA_AT_LEAST:
        return {}
    k = max(1, min(NEIGHBORS, len(inputs) // 2))
    return agreement(embeddings(after, inputs), embeddings(before, inputs), k=k)


@torch.inference_mode()
def embeddings(model: Any, inputs: Tensor) -> Tensor:
    """Embeddings (N, D) of all inputs on the CPU, in eval mode."""
    modes = {m: m.training for m in model.modules()} if isinstance(model, nn.Module) else {}
    model.eval()
    device = model.device if isinstance(model, Model) else torch.device("cpu")
    try:
        batches = [
            model(part.to(device)).embedding_BD.float().cpu() for part in inputs.split(BATCH)
        ]
    finally:
        for module, mode in modes.items():
            module.training = mode
    return torch.cat(batches)


def _timed(
    before: Any, after: Any, inputs: Tensor, threads: int, clock: Clock
) -> tuple[dict[str, float], str]:
    """Metrics of latency and what ran both models; no metrics where nothing can run both."""
    try:
        with same_runtime(before, after) as (timed_after, timed_before):
            metrics = {
                size: paired_latency(
                    timed_after,
                    timed_before,
                    inputs[:BATCH],
                    batch_size=size,
                    threads=threads,
                    rounds=ROUNDS,
                    seconds_each=SECONDS_EACH,
                    clock=clock,
                )
                for size in (1, BATCH)
            }
    except UserError as error:
        return {}, f"not timed: {error}"
    return {**_metrics(metrics[1], ""), **_metrics(metrics[BATCH], f"_batch{BATCH}")}, metrics[
        1
    ].runtime


def _metrics(paired: PairedLatency, size: str) -> dict[str, float]:
    return {
        f"compress/latency{size}_ms": paired.p50_ms,
        f"compress/latency{size}_ms_before": paired.reference_p50_ms,
        f"compress/speedup{size}": paired.speedup,
        f"compress/speedup{size}_low": paired.speedup_low,
        f"compress/speedup{size}_high": paired.speedup_high,
    }


@contextmanager
def same_runtime(before: Any, after: Any) -> Iterator[tuple[Any, Any]]:
    """``after`` and ``before``, both as what one runtime runs.

    Raises:
        UserError: they are files for different runtimes, or ``before`` cannot be written for
            the runtime of ``after``.
    """
    with ExitStack() as stack:
        if isinstance(after, nn.Module) and isinstance(before, nn.Module):
            try:
                pair: list[Any] = []
                for model in (after, before):
                    pair += [stack.enter_context(float_onnx(cast("Model", model)))]
            except UserError:
                # Not every module can be exported; PyTorch at least runs both alike.
                pair = [after, before]
            yield pair[0], pair[1]
        elif isinstance(after, nn.Module) or not isinstance(before, nn.Module):
            if isinstance(after, nn.Module) or after.runtime != before.runtime:
                raise UserError(
                    "the models are files for different runtimes; export both for the same one"
                )
            yield after, before
        else:
            yield after, stack.enter_context(written_for(after.runtime, before))


@contextmanager
def written_for(runtime: str, model: Any) -> Iterator[RuntimeModel]:
    """A PyTorch model in a runtime, by its kind, in a folder that lives as long as the ``with``.

    Raises:
        UserError: the runtime is not installed, or cannot do what the model does.
    """
    kind = RUNTIMES[runtime]
    if runtime == "onnxruntime":
        with float_onnx(model) as written:
            yield written
        return
    with TemporaryDirectory() as folder:
        path = Path(folder) / kind.file
        kind().write(model, path)
        yield kind.opens(path, model.embed_dim, getattr(model, "spec", None))
