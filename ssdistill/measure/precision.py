"""Choose the fastest training precision and memory format by a cached measurement."""

import hashlib
import json
import math
import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from ssdistill.files import write_atomically
from ssdistill.models.spec import RGB
from ssdistill.settings import Size

Precision = Literal["fp32", "bf16", "fp16"]
MemoryFormat = Literal["contiguous", "channels_last"]
Candidate = tuple[Precision, MemoryFormat]

CANDIDATES: tuple[Candidate, ...] = (
    ("fp32", "contiguous"),
    ("fp32", "channels_last"),
    ("bf16", "contiguous"),
    ("bf16", "channels_last"),
)
"""Simplest first: an earlier candidate wins unless a later one is clearly faster."""
FP16_CANDIDATES: tuple[Candidate, ...] = (("fp16", "contiguous"), ("fp16", "channels_last"))
"""Only where a config asks for them: float16 needs a loss scale, and is no better than bf16."""
TOLERANCE = 1.03
"""A simpler candidate is chosen if it is at most this much slower than the fastest."""
HOPELESS = 2.0
"""A candidate this much slower than the best so far is dropped."""


@dataclass(frozen=True)
class Choice:
    """Precision and memory format to train with.

    Attributes:
        precision, memory_format: the chosen candidate.
        seconds: shortest step of every candidate, as ``"bf16 channels_last" -> s``.
        remembered: True when it was read from the cache and not measured.
    """

    precision: Precision
    memory_format: MemoryFormat
    seconds: dict[str, float] = field(default_factory=dict)
    remembered: bool = False


def choose_precision(
    make_step: Callable[[Precision, MemoryFormat], Callable[[], None]],
    candidates: Iterable[Candidate] = CANDIDATES,
    rounds: int = 6,
    *,
    cache: Path | None = None,
    key: dict[str, Any] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Choice:
    """The candidate with the shortest training step, from a short interleaved measurement.

    Args:
        make_step: ``make_step(precision, memory_format)`` builds what one training step runs,
            on its own copy of the model (and synchronizes, on a device that runs ahead).
        candidates: what to try, plainest first.
        rounds: timed steps per candidate, after one that warms it up.
        cache: folder of ``precision.json``, where choices are remembered so that an interrupted
            run continues as it began; None measures every time.
        key: what the choice depends on, see :func:`precision_key`.
        clock: seconds, monotonic.

    Returns:
        a choice within 3 % of the fastest.
    """
    candidates = tuple(candidates)
    digest = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()
    cached = _recall(cache, digest, candidates)
    if cached is not None:
        return cached
    times = _measure(make_step, candidates, rounds, clock)
    # The shortest, not the median: whatever else the machine does can only lengthen a step, and
    # over a few steps it does so to some candidates more than to others.
    shortest = {candidate: min(t) for candidate, t in times.items()}
    limit = TOLERANCE * min(shortest.values())
    winner = next(c for c in candidates if shortest[c] <= limit)
    choice = Choice(*winner, {" ".join(c): seconds for c, seconds in shortest.items()})
    _remember(cache, digest, choice, key)
    return choice


def precision_key(spec: Any, batch_size: int, image_size: Size) -> dict[str, Any]:
    """Everything a choice depends on: architecture, batch, images, hardware, torch, threads.

    Args:
        spec: the :class:`~ssdistill.models.backbones.EncoderSpec`.
        batch_size: images per step.
        image_size: pixels a side, or height and width.
    """
    channels = {"channels": spec.in_chans} if spec.in_chans != RGB else {}
    return channels | {
        "architecture": spec.model_dump(mode="json", exclude={"mean", "std", "image_size"}),
        "batch_size": batch_size,
        "image_size": image_size,
        "hardware": _hardware(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def _hardware() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    model = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "")
    return f"{model or platform.processor()} {torch.backends.cpu.get_cpu_capability()}"


def _measure(
    make_step: Callable[[Precision, MemoryFormat], Callable[[], None]],
    candidates: tuple[Candidate, ...],
    rounds: int,
    clock: Callable[[], float],
) -> dict[Candidate, list[float]]:
    steps = {candidate: make_step(*candidate) for candidate in candidates}
    for step in steps.values():
        step()
    times: dict[Candidate, list[float]] = {candidate: [] for candidate in candidates}
    limit = math.inf
    for _ in range(rounds):
        for candidate, step in steps.items():
            if len(times[candidate]) > 1 and min(times[candidate]) > limit:
                continue
            start = clock()
            step()
            times[candidate].append(clock() - start)
        limit = HOPELESS * min(min(t) for t in times.values())
    return times


def _entries(cache: Path | None) -> dict[str, Any]:
    try:
        entries = json.loads((cache / "precision.json").read_text()) if cache else {}
    except (OSError, ValueError):
        # A cache that cannot be read costs a measurement, not the run.
        return {}
    return entries if isinstance(entries, dict) else {}


def _recall(cache: Path | None, digest: str, candidates: tuple[Candidate, ...]) -> Choice | None:
    entry = _entries(cache).get(digest)
    if not isinstance(entry, dict):
        return None
    chosen = (entry.get("precision"), entry.get("memory_format"))
    for candidate in candidates:
        if candidate == chosen:
            return Choice(*candidate, dict(entry.get("seconds", {})), remembered=True)
    return None


def _remember(cache: Path | None, digest: str, choice: Choice, key: dict[str, Any] | None) -> None:
    if cache is None:
        return
    cache.mkdir(parents=True, exist_ok=True)
    entry = {
        "precision": choice.precision,
        "memory_format": choice.memory_format,
        "seconds": choice.seconds,
        "key": key,
    }
    entries = _entries(cache) | {digest: entry}
    write_atomically(cache / "precision.json", json.dumps(entries, indent=2, default=str).encode())
