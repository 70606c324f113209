"""Benchmark stage: interleaved timing of all models in one process."""

import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ssdistill.chain.stage_files import read_json
from ssdistill.chain.stages import Stage
from ssdistill.chain.workspace import MODEL, Workspace
from ssdistill.compress import bar
from ssdistill.errors import UserError
from ssdistill.files import write_atomically
from ssdistill.measure.before_after import written_for
from ssdistill.measure.hardware import all_threads, instruction_set
from ssdistill.measure.latency import (
    Latency,
    PairedLatency,
    compare_latency,
    example,
    paired_latency,
    runtime_of,
)
from ssdistill.measure.memory import peak_memory
from ssdistill.measure.parameters import file_bytes
from ssdistill.record.tracker import Tracker

TIMING = "latency.json"
"""What was timed in which runtime: words, which metrics cannot hold."""
ROUNDS_ALL_THREADS, SECONDS_ALL_THREADS = 10, 5.0


def latency(stage: Stage, workspace: Workspace, tracker: Tracker) -> dict[str, Any]:
    """Time every model and separate the speed-ups of runtime and compression.

    A PyTorch model is written for ONNX Runtime for the occasion: int8 against PyTorch would
    mostly compare runtimes. A file for another runtime is timed there.

    Per model (``…/<role>``), in ms: ``compress/latency_ms`` and ``compress/latency_batch64_ms``
    (median on one thread), ``…_p90_ms``, the same on all cores (``…_all_threads_ms``), and for
    PyTorch models ``compress/eager_ms``. Speed-ups: ``compress/runtime_gain``, the same model in
    PyTorch over itself in its runtime; ``compress/speedup`` and ``compress/speedup_batch64``, the
    uncompressed student over the model, both in the model's runtime, with the ends of their
    intervals (``_low``, ``_high``). ``compress/smaller``: the bytes of the uncompressed student
    over the model's. If the experiment sets it, ``compress/memory``: bytes that opening the
    model and running it on one image take at most, in a process of its own; a float model runs
    in PyTorch there.
    """
    models = {role: workspace.encoder(parent) for role, parent in stage.parents.items()}
    dense = uncompressed_roles(stage)
    sizes = stage.config["batch_sizes"]
    with ExitStack() as stack:
        ready = {role: stack.enter_context(_in_runtime(m)) for role, m in models.items()}
        x = example(models.values(), max(sizes))
        metrics = _side_by_side(ready, x, sizes)
        gains = _runtime_gains(models, ready, x)
        metrics |= {
            f"compress/{name}/{role}": value
            for role, gain in gains.items()
            for name, value in (
                ("eager_ms", gain.reference_p50_ms),
                ("runtime_gain", gain.speedup),
            )
        }
        metrics |= _compression_gains(models, ready, x, dense, sizes)
    folders = {role: p.folder(workspace.root) / MODEL for role, p in stage.parents.items()}
    for role, dense_role in dense.items():
        metrics[f"compress/smaller/{role}"] = file_bytes(folders[dense_role]) / file_bytes(
            folders[role]
        )
    if stage.config["memory"]:
        metrics |= _memories(folders)
    words = {
        role: {
            "runtime": runtime_of(ready[role]),
            "eager": gains[role].reference_runtime if role in gains else None,
            "reference": dense.get(role),
        }
        for role in models
    }
    _write(tracker.run.folder / TIMING, words)
    return metrics


def uncompressed_roles(stage: Stage) -> dict[str, str]:
    """By role of every compressed model, the role of what its first step was given."""
    names = {(parent.digest, parent.seed): role for role, parent in stage.parents.items()}
    dense = {}
    for role, parent in stage.parents.items():
        source = parent
        while source.kind == "compress":
            source = source.parents["model"]
        if source is not parent:
            dense[role] = names[source.digest, source.seed]
    return dense


def timing_of(stage: Stage, root: Path) -> dict[str, dict[str, Any]]:
    """Return what a finished latency stage timed, by role.

    That is ``runtime``, ``eager``, ``reference``, ``instructions`` and ``threads``; empty for a
    stage that did not write it down.
    """
    path = stage.folder(root) / TIMING
    if not path.exists():
        return {}
    timing = read_json(path, lambda content: _is_timing(content, stage.parents))
    shared = {"instructions": timing["instructions"], "threads": timing["threads"]}
    return {role: {**words, **shared} for role, words in timing["models"].items()}


def _is_timing(content: Any, roles: Iterable[str]) -> bool:
    """Whether it is what :func:`_write` writes of these models."""
    rows = content["models"]
    return {"instructions", "threads"} <= content.keys() and all(
        {"runtime", "eager", "reference"} <= rows[role].keys() for role in roles
    )


def _write(path: Path, models: dict[str, dict[str, Any]]) -> None:
    content = {"instructions": instruction_set(), "threads": all_threads(), "models": models}
    write_atomically(path, json.dumps(content, indent=1) + "\n")


def _memories(folders: dict[str, Path]) -> dict[str, float]:
    peaks = {role: peak_memory(folders[role]) for role in bar([*folders], "peak memory")}
    return {
        f"compress/memory/{role}": max(peak.opening, peak.running)
        for role, peak in peaks.items()
        if peak is not None
    }


@contextmanager
def _in_runtime(model: Any, runtime: str = "onnxruntime") -> Iterator[Any]:
    """A file as it is, a PyTorch model in ``runtime`` or, where that cannot hold it, as it is."""
    if not isinstance(model, nn.Module):
        yield model
        return
    with ExitStack() as stack:
        try:
            written = stack.enter_context(written_for(runtime, model))
        except UserError:
            written = model
        yield written


def _side_by_side(ready: dict[str, Any], x: Tensor, sizes: list[int]) -> dict[str, float]:
    """Medians and 90 % quantiles of all models, on one thread and on all."""
    metrics = _latencies(compare_latency(ready, x, sizes))
    rows = compare_latency(
        ready,
        x,
        sizes,
        threads=all_threads(),
        rounds=ROUNDS_ALL_THREADS,
        seconds_each=SECONDS_ALL_THREADS,
    )
    return metrics | _latencies(rows, "_all_threads")


def _latencies(rows: list[Latency], threads: str = "") -> dict[str, float]:
    metrics = {}
    for row in rows:
        name = f"compress/latency{_batch_suffix(row.batch_size)}{threads}"
        metrics[f"{name}_ms/{row.name}"] = row.p50_ms
        metrics[f"{name}_p90_ms/{row.name}"] = row.p90_ms
    return metrics


def _batch_suffix(batch_size: int) -> str:
    return "" if batch_size == 1 else f"_batch{batch_size}"


def _runtime_gains(
    models: dict[str, Any], ready: dict[str, Any], x: Tensor
) -> dict[str, PairedLatency]:
    """Every PyTorch model in its runtime, in turns with itself in PyTorch."""
    return {
        role: paired_latency(ready[role], model, x)
        for role, model in models.items()
        if isinstance(model, nn.Module) and ready[role] is not model
    }


def _compression_gains(
    models: dict[str, Any],
    ready: dict[str, Any],
    x: Tensor,
    dense: dict[str, str],
    sizes: list[int],
) -> dict[str, float]:
    """Every compressed model in turns with the uncompressed one, written for its runtime."""
    metrics = {}
    for role, dense_role in dense.items():
        with ExitStack() as stack:
            reference = stack.enter_context(
                _reference(models[dense_role], ready[dense_role], ready[role])
            )
            if reference is None:
                continue
            for size in sizes:
                paired = paired_latency(ready[role], reference, x, batch_size=size)
                name = f"compress/speedup{_batch_suffix(size)}"
                metrics[f"{name}/{role}"] = paired.speedup
                metrics[f"{name}_low/{role}"] = paired.speedup_low
                metrics[f"{name}_high/{role}"] = paired.speedup_high
    return metrics


@contextmanager
def _reference(dense: Any, ready: Any, model: Any) -> Iterator[Any]:
    """The uncompressed model in the runtime of ``model``; None if that runtime cannot run it."""
    if isinstance(model, nn.Module):
        yield dense
    elif getattr(ready, "runtime", None) == model.runtime:
        yield ready
    else:
        with ExitStack() as stack:
            try:
                written = stack.enter_context(written_for(model.runtime, dense))
            except UserError:
                written = None
            yield written
