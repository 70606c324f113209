"""Describe timings: runtimes, instructions and the reference of a ratio."""

from collections.abc import Sequence
from typing import Any

LATENCY = "compress/latency_ms"
GAINS = {
    "compress/speedup": "speed-up: over {reference} in the same runtime, with its 95 % interval",
    "compress/runtime_gain": "speed-up over PyTorch: over the same model in eager PyTorch",
    "compress/memory": "peak memory: what opening the model and running one image adds to a "
    "process, in PyTorch unless it is a file for a runtime",
}
"""What a ratio is over, and where a figure comes from that is no latency."""


def describe_timing(metrics: Sequence[str], records: Sequence[dict[str, Any]]) -> list[str]:
    """Phrases for the caption of a table that shows ``metrics``.

    Args:
        records: those with a ``timing`` (``runtime``, ``instructions``, ``reference``) say what
            they were timed in; others are omitted.
    """
    timed = {r["model"]: r["timing"] for r in records if r.get("timing")}
    if not timed or LATENCY not in metrics:
        return []
    runtimes: dict[str, list[str]] = {}
    for model, facts in timed.items():
        runtimes.setdefault(facts["runtime"], []).append(model)
    usual = max(runtimes, key=lambda name: len(runtimes[name]))
    others = [f"{name} ({', '.join(runtimes[name])})" for name in runtimes if name != usual]
    machines = ", ".join(dict.fromkeys(facts["instructions"] for facts in timed.values()))
    reference = next((f["reference"] for f in timed.values() if f["reference"]), "")
    named = ", ".join([usual, *others])
    return [
        f"latency of one image on one thread, {named}, {machines}",
        *(text.format(reference=reference) for m, text in GAINS.items() if m in metrics),
    ]
